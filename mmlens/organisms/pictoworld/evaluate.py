"""How often a checkpoint answers exactly right, with controls, by transformers alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from transformers import AutoProcessor, LlavaForConditionalGeneration

from mmlens.organisms.asking import Rates, answers, rates
from mmlens.organisms.pictoworld.batches import patch_batch
from mmlens.organisms.pictoworld.scenes import Scene, blank, scenes, shuffled
from mmlens.organisms.pictoworld.text import CAPTION_PROMPT, Question
from mmlens.organisms.pictoworld.world import COLORS, RENAMED
from mmlens.organisms.probing import linear_probe

_PROBE_SEED = 2 * 10**6
_RENAMED_NOUNS = {noun for nouns in RENAMED.values() for noun in nouns.values()}


def load(folder: str | Path) -> tuple[LlavaForConditionalGeneration, object]:
    """The model of a folder, ready to answer, and its processor."""
    return LlavaForConditionalGeneration.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def measure(model, processor, *, n: int = 400, seed: int = 0) -> dict[str, Rates]:
    """Exact-match rates on held-out scenes, by what the model is given and by question.

    given: "image"; "shuffled" (the image of another scene of the same domain); "blank" (a grey image); "notes" (a
    description in words, no image).
    """
    held_out = scenes("held_out", n, seed)
    given = {"image": [s.image for s in held_out], "shuffled": shuffled(held_out), "blank": [blank()] * n}
    result = {name: _rates(model, processor, held_out, images) for name, images in given.items()}
    return {**result, "notes": measure_notes(model, processor, held_out)}


def measure_image(model, processor, held_out: Sequence[Scene]) -> Rates:
    """Exact-match rates with each scene's own image."""
    return _rates(model, processor, held_out, [s.image for s in held_out])


def measure_notes(model, processor, held_out: Sequence[Scene]) -> Rates:
    """Exact-match rates when the scene is described in words, without an image."""
    return _rates(model, processor, held_out, None)


def image_features(model, pixels: Float[torch.Tensor, "batch 3 64 64"]) -> Float[torch.Tensor, "batch patch width"]:
    """The vision tower's last hidden state at the 64 patches: what the projector reads."""
    return model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]


@torch.inference_mode()
def patch_probe(model, *, n: int = 600) -> dict[str, float]:
    """How often a linear probe (ridge regression) names the silhouette and the colour of a held-out object patch."""
    sets = []
    for split in ("train", "held_out"):
        pixels, shapes, colors = patch_batch(_PROBE_SEED, n, split)
        shown = colors < len(COLORS)
        classes = {"silhouette of object patches": shapes[shown], "color of object patches": colors[shown]}
        sets += [image_features(model, pixels)[shown], classes]
    return linear_probe(*sets)


def _rates(model, processor, held_out, images) -> Rates:
    asked = [(i, scene, q) for i, scene in enumerate(held_out) for q in _questions(scene)]
    if images is None:
        prompts = [f"{scene.notes} {q.text}" for _, scene, q in asked]
        said = answers(model, processor, prompts)
    else:
        prompts = [f"<image>{q.text}" for _, _, q in asked]
        said = answers(model, processor, prompts, images=[images[i] for i, _, _ in asked])
    hits: dict[str, list[bool]] = {}
    for (_, scene, question), answer in zip(asked, said, strict=True):
        for name in _groups(scene, question):
            hits.setdefault(name, []).append(answer == question.answer)
    return rates(hits)


def _questions(scene: Scene):
    return [*scene.questions, Question(CAPTION_PROMPT, scene.caption, "caption", None)]


def _groups(scene: Scene, question: Question) -> list[str]:
    groups = [question.kind]
    if question.kind != "count":
        groups.append(f"{question.kind}, objects: {len(scene.objects)}")
    if question.object is not None and question.object.noun in _RENAMED_NOUNS:
        groups.append(f"{question.kind}, renamed by domain")
    return groups
