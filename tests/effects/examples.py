"""What the effects tests share: questions about scenes as batches, intervals, and a model with shuffled weights."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import bootstrap
from transformers import AutoConfig, AutoProcessor

from mmlens import HookedMLLM, Inputs
from mmlens.families import family_of
from mmlens.organisms import CHECKPOINTS
from mmlens.organisms.pictoworld import Question, Scene

BATCH = 50


@dataclass(frozen=True)
class Example:
    """A colour question about a scene, its answer up to the noun, and the noun: what the last position must predict."""

    scene: Scene
    question: Question
    image: int

    @property
    def noun(self) -> str:
        return self.question.answer.rpartition(" ")[2]


def color_examples(scenes: Sequence[Scene]) -> list[Example]:
    return [Example(s, q, i) for i, s in enumerate(scenes) for q in s.questions if q.kind == "color"]


def inputs_of(model: HookedMLLM, examples: Sequence[Example]) -> tuple[Inputs, torch.Tensor]:
    """Return the examples with "the" already answered, and the first token of each noun."""
    inputs = model.to_inputs(
        [e.question.text for e in examples],
        images=[e.scene.image for e in examples],
        answer=[e.question.answer.rpartition(" ")[0] for e in examples],
    )
    return inputs, torch.tensor([model.to_token(e.noun) for e in examples])


def batches(examples: Sequence[Example], size: int = BATCH) -> Iterator[Sequence[Example]]:
    for start in range(0, len(examples), size):
        yield examples[start : start + size]


def correct_ones(model: HookedMLLM, examples: Sequence[Example]) -> list[Example]:
    """Return the examples whose noun the model predicts."""
    kept: list[Example] = []
    for batch in batches(examples):
        inputs, tokens = inputs_of(model, batch)
        with torch.no_grad():
            right = model(inputs)[:, -1].argmax(-1) == tokens
        kept += [example for example, ok in zip(batch, right.tolist(), strict=True) if ok]
    return kept


def interval(values: Sequence[float], images: Sequence[int], expectations: dict) -> tuple[float, float, float]:
    """Return the mean over images, and its bootstrap interval: an image's values are averaged first."""
    settings = expectations["bootstrap"]
    groups: dict[int, list[float]] = {}
    for value, image in zip(values, images, strict=True):
        groups.setdefault(image, []).append(value)
    means = np.array([np.mean(group) for group in groups.values()])
    if np.ptp(means) == 0:
        return float(means.mean()), float(means.mean()), float(means.mean())
    found = bootstrap(
        (means,),
        np.mean,
        n_resamples=settings["resamples"],
        confidence_level=settings["confidence"],
        method="percentile",
        random_state=np.random.default_rng(settings["seed"]),
    ).confidence_interval
    return float(means.mean()), float(found.low), float(found.high)


def random_weights(name: str, seed: int = 0) -> HookedMLLM:
    """Return the organism with the entries of every weight tensor shuffled: the same statistics, nothing learnt."""
    model = family_of(AutoConfig.from_pretrained(CHECKPOINTS[name]).model_type).loads.from_pretrained(CHECKPOINTS[name])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.flatten()[torch.randperm(weight.numel(), generator=generator)].view_as(weight))
    return HookedMLLM(model, AutoProcessor.from_pretrained(CHECKPOINTS[name]), name=f"{name}, weights shuffled")
