"""How often a checkpoint answers exactly right, with controls, by transformers alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

from mmlens.organisms.asking import Rates, answers, rates
from mmlens.organisms.pictosound import world
from mmlens.organisms.pictosound.batches import position_batch
from mmlens.organisms.pictosound.clips import Clip, clips, shuffled, silence
from mmlens.organisms.pictosound.text import AUDIO, BEGIN, CAPTION_PROMPT, END, Question
from mmlens.organisms.probing import linear_probe

PLACEHOLDER = f"{BEGIN}{AUDIO}{END}"
_PROBE_SEED = 2 * 10**6


def load(folder: str | Path) -> tuple[Qwen2AudioForConditionalGeneration, object]:
    """The model of a folder, ready to answer, and its processor."""
    return Qwen2AudioForConditionalGeneration.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def measure(model, processor, *, n: int = 400, seed: int = 0) -> dict[str, Rates]:
    """Exact-match rates on held-out clips, by what the model is given and by question.

    given: "sound"; "shuffled" (the sound of another clip with as many events); "silence"; "notes" (a description in
    words, no sound).
    """
    held_out = clips("held_out", n, seed)
    given = {
        "sound": [c.samples for c in held_out],
        "shuffled": [samples for samples, _ in shuffled(held_out)],
        "silence": [silence()[0]] * n,
    }
    result = {name: _rates(model, processor, held_out, sounds) for name, sounds in given.items()}
    return {**result, "notes": measure_notes(model, processor, held_out)}


def measure_sound(model, processor, held_out: Sequence[Clip]) -> Rates:
    """Exact-match rates with each clip's own sound."""
    return _rates(model, processor, held_out, [c.samples for c in held_out])


def measure_notes(model, processor, held_out: Sequence[Clip]) -> Rates:
    """Exact-match rates when the clip is described in words, without its sound."""
    return _rates(model, processor, held_out, None)


def sound_features(model, features: Float[torch.Tensor, "batch mel frame"]) -> Float[torch.Tensor, "batch position width"]:
    """The audio tower's output at the 50 positions: what the projector reads."""
    return model.model.audio_tower(features).last_hidden_state


@torch.inference_mode()
def position_probe(model, *, n: int = 600) -> dict[str, float]:
    """How often a linear probe (ridge regression) tells noun, pitch, rhythm and order at held-out positions of events."""
    sets = []
    for split in ("train", "held_out"):
        features, classes = position_batch(_PROBE_SEED, n, split)
        heard = classes["noun"] < len(world.NOUNS)
        sets += [sound_features(model, features)[heard], {name: found[heard] for name, found in classes.items()}]
    return linear_probe(*sets)


def _rates(model, processor, held_out: Sequence[Clip], sounds: Sequence[np.ndarray] | None) -> Rates:
    asked = [(i, clip, q) for i, clip in enumerate(held_out) for q in _questions(clip)]
    asked.sort(key=lambda row: row[2].kind)  # so that the answers of a batch are about as long
    if sounds is None:
        said = answers(model, processor, [f"{clip.notes} {q.text}" for _, clip, q in asked])
    else:
        prompts, heard = [f"{PLACEHOLDER}{q.text}" for _, _, q in asked], [sounds[i] for i, _, _ in asked]
        said = answers(model, processor, prompts, audio=heard, rate=world.RATE)
    hits: dict[str, list[bool]] = {}
    for (_, clip, question), answer in zip(asked, said, strict=True):
        for name in _groups(clip, question):
            hits.setdefault(name, []).append(answer == question.answer)
    return rates(hits)


def _questions(clip: Clip) -> list[Question]:
    return [*clip.questions, Question(CAPTION_PROMPT, clip.caption, "caption", None)]


def _groups(clip: Clip, question: Question) -> list[str]:
    return [question.kind] if question.kind == "count" else [question.kind, f"{question.kind}, events: {len(clip.events)}"]
