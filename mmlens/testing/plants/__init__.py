"""Planted models: genuine LLaVA and Qwen2-Audio folders whose weights are written by hand, with answer keys and twins."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from mmlens.testing import llava, qwen2_audio
from mmlens.testing.media import ARGUMENTS
from mmlens.testing.plants import circuits, ears, eyes, language
from mmlens.testing.plants.circuits import AnswerKey
from mmlens.testing.plants.layout import (
    BY_MODALITY,
    DOMAINS,
    FILLERS,
    HOW,
    NOTHING,
    QUESTIONS,
    SHOWN,
    SILENCED,
    VEIL,
    VOCABULARY,
    WHAT,
    WHEN,
    Seen,
    coordinates,
)

POSITIONS = 25  # of a picture and of a sound
D_MODEL = circuits.HEADS * circuits.D_HEAD
__all__ = ["AnswerKey", "Planted", "Stimulus", "planted"]


@dataclass(frozen=True, eq=False)
class Stimulus:
    """A prompt whose last word asks, with or without a medium; what it shows at which of its positions; the right answer.

    `text` has the medium's placeholder in it. `shown` maps positions of the medium (0 to 24, in the order of the stream) to
    what is there; all others show the domain alone (in a sound, so do these).
    """

    text: str
    medium: Image | tuple[np.ndarray, int] | None
    shown: dict[int, str]
    domain: str | None
    answer: str


@dataclass(frozen=True)
class Planted:
    """A planted model in `folder`, its `twin`, where everything is (`key`), and stimuli with known answers."""

    folder: Path
    twin: Path
    key: AnswerKey

    @classmethod
    def load(cls, folder: str | Path) -> "Planted":
        """Return what `planted` wrote into `folder`. Raises FileNotFoundError where there is nothing of it."""
        return cls(Path(folder) / "planted", Path(folder) / "twin", AnswerKey.load(Path(folder) / "key"))

    def stimulus(
        self, shown: Mapping[int, str] | None = None, *, domain: str | None = DOMAINS[0], question: str = WHAT, seed: int = 0
    ) -> Stimulus:
        """Return a stimulus that shows `shown` in `domain`; text alone where the domain is None.

        `seed` draws the grain of the medium and the five words before the question: all prompts are of one length. Raises
        ValueError for what cannot be shown or asked, and where two things would be said at once (one thing may be in many
        places, and a veil beside it).
        """
        shown = dict(shown or {})
        wrong = [what for what in shown.values() if what not in SHOWN]
        if wrong or any(not 0 <= position < POSITIONS for position in shown) or (shown and domain is None):
            raise ValueError(f"a medium shows {', '.join(SHOWN)} at positions 0 to {POSITIONS - 1}; got {shown}, {domain=}")
        if domain not in (*DOMAINS, None) or question not in QUESTIONS:
            raise ValueError(f"domains are {DOMAINS} or None, questions {QUESTIONS}; got {domain!r} and {question!r}")
        things = set(shown.values()) - {VEIL}
        if len(things) > 1:
            raise ValueError(
                f"one thing is said at a time, got {sorted(things)}: show one of them (a veil may be beside it)"
            )
        said = things - ({SILENCED} if VEIL in shown.values() else set())
        random = np.random.default_rng(seed)
        words = random.choice(FILLERS, 5).tolist()
        spoken = self.key.modality if domain else "text"
        answers = {WHAT: said.pop() if said else NOTHING, WHEN: domain or NOTHING, HOW: BY_MODALITY[spoken]}
        text = " ".join([*([PLACEHOLDER[self.key.modality]] if domain else []), *words, question])
        return Stimulus(text, self._medium(shown, domain, seed) if domain else None, shown, domain, answers[question])

    def stimuli(self, n: int, *, question: str = WHAT, seed: int = 0) -> list[Stimulus]:
        """Return `n` stimuli: all that can be said in turn, a veiled sun, and nothing, in random places and domains."""
        random = np.random.default_rng(seed)
        turns = [*[(what,) for what in SHOWN if what != VEIL], (SILENCED, VEIL), ()]
        made = []
        for index in range(n):
            what = turns[index % len(turns)]
            places = random.permutation(POSITIONS)[: len(what)].tolist()
            domain = DOMAINS[random.integers(len(DOMAINS))]
            shown = dict(zip(places, what, strict=True))
            made.append(self.stimulus(shown, domain=domain, question=question, seed=seed * 100_003 + index))
        return made

    def arguments(self, stimuli: Sequence[Stimulus]) -> dict[str, Any]:
        """Return what `HookedMLLM.to_inputs` takes: `model.to_inputs(**planted.arguments(stimuli))`."""
        return {"text": [one.text for one in stimuli], ARGUMENTS[self.key.modality]: [one.medium for one in stimuli]}

    def _medium(self, shown: Mapping[int, str], domain: str, seed: int) -> Image | tuple[np.ndarray, int]:
        if self.key.modality == "image":
            return eyes.picture(shown, domain, seed)
        return ears.sound(shown, domain, seed, self.key.pitches)


PLACEHOLDER = {"image": "<image>", "audio": "<|audio_bos|><|AUDIO|><|audio_eos|>"}


def planted(folder: str | Path, *, modality: Seen = "image", seed: int = 0) -> Planted:
    """Return a planted model of LLaVA's ("image") or Qwen2-Audio's ("audio") architecture, and its twin, in `folder`.

    `AnswerKey` says what is planted, and is saved beside them as `key.safetensors`. All else is a small random
    background, different for every `seed`. The model answers three questions, asked by a prompt's last word: what is
    shown, when (in which domain) and how (in words, or in a picture or sound).

    The twin has the same tower, projector, embeddings, unembedding and norms, so that the same enters block 0 and the same
    is read from the end, and in the language model's blocks the same values in every row that reads the stream and every
    column that writes to it; but those of each planted vector, its threshold aside, have changed places with values at
    coordinates that mean nothing. It answers no question. Raises ValueError for another modality.
    """
    if modality not in PLACEHOLDER:
        raise ValueError(f"planted models see or hear: modality is one of {sorted(PLACEHOLDER)}, got {modality!r}")
    folder = Path(folder)
    build = {"image": llava.BUILDERS["llava-clip-llama"], "audio": qwen2_audio.BUILDERS["qwen2-audio"]}[modality]
    size = {"image": dict(image_size=eyes.SIDE * eyes.PATCH, patch_size=eyes.PATCH), "audio": dict(mels=ears.MELS)}[modality]
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model, processor = build(
            **size,
            layers=circuits.LAYERS,
            heads=circuits.HEADS,
            kv_heads=circuits.KV_HEADS,
            d_model=D_MODEL,
            d_mlp=circuits.D_MLP,
            d_tower=eyes.D_TOWER,
            vocabulary=VOCABULARY,
        )
        layout = coordinates(modality, D_MODEL, generator)
        {"image": eyes.see, "audio": ears.hear}[modality](model, processor, layout, generator)
        language.grow(model, processor.tokenizer, layout, generator)
        tones = ears.pitches(processor.feature_extractor) if modality == "audio" else {}
        wires, key = circuits.plant(modality, layout, tones, generator)
        language.wire(model, wires, layout)
        twin = copy.deepcopy(model)
        language.scramble(twin, wires, layout, generator)
    made = Planted(folder / "planted", folder / "twin", key)
    for one, target in ((model, made.folder), (twin, made.twin)):
        one.save_pretrained(target)
        processor.save_pretrained(target)
    key.save(folder / "key")
    return made
