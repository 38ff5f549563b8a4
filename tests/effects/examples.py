"""What the effects tests share: questions about scenes as batches, intervals, and a model with shuffled weights."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.stats import bootstrap
from transformers import AutoConfig, AutoProcessor

from mmlens import HookedMLLM, Inputs, metrics
from mmlens.analysis import activation_patching
from mmlens.families import family_of
from mmlens.organisms import CHECKPOINTS, pictosound, pictoworld
from mmlens.organisms.pictosound import Clip, Event
from mmlens.organisms.pictoworld import Object, Scene

BATCH = 50
NAMES = ("pictoworld", "pictoworld-frozen", "pictosound", "pictosound-frozen")
SHUFFLED = tuple(f"{name}, weights shuffled" for name in ("pictoworld-frozen", "pictosound-frozen"))
MEDIUM = {"pictoworld": "image", "pictosound": "audio"}  # by world


@dataclass(frozen=True)
class Example:
    """A question about a scene or a clip, its answer up to the noun, and the noun: what the last position must predict."""

    scene: Scene | Clip
    question: pictoworld.Question | pictosound.Question
    image: int

    @property
    def noun(self) -> str:
        return self.question.answer.rpartition(" ")[2]

    @property
    def asked(self) -> Object | Event:
        return self.question.event if isinstance(self.question, pictosound.Question) else self.question.object


def color_examples(scenes: Sequence[Scene]) -> list[Example]:
    return [Example(s, q, i) for i, s in enumerate(scenes) for q in s.questions if q.kind == "color"]


def pitch_examples(clips: Sequence[Clip]) -> list[Example]:
    return [Example(c, q, i) for i, c in enumerate(clips) for q in c.questions if q.kind == "pitch"]


def world_of(name: str) -> str:
    return "pictosound" if name.startswith("pictosound") else "pictoworld"


def scenes_of(name: str, n: int, seed: int) -> Sequence[Scene] | Sequence[Clip]:
    """Return held-out scenes of an organism's world, or clips."""
    return (pictosound.clips if world_of(name) == "pictosound" else pictoworld.scenes)("held_out", n=n, seed=seed)


def examples_of(name: str, scenes: Sequence) -> list[Example]:
    """Return the questions of an organism's world whose answer is one noun."""
    return (pitch_examples if world_of(name) == "pictosound" else color_examples)(scenes)


def things_of(scene: Scene | Clip) -> Sequence[Object | Event]:
    return scene.events if isinstance(scene, Clip) else scene.objects


def inputs_of(model: HookedMLLM, examples: Sequence[Example]) -> tuple[Inputs, torch.Tensor]:
    """Return the examples, answered up to their nouns, and the first token of each noun."""
    scenes = [e.scene for e in examples]
    inputs = model.to_inputs(
        [e.question.text for e in examples],
        **media_of(scenes),
        answer=[e.question.answer.rpartition(" ")[0] for e in examples],
    )
    return inputs, torch.tensor([model.to_token(e.noun) for e in examples])


def media_of(scenes: Sequence[Scene] | Sequence[Clip]) -> dict[str, list]:
    """Return the pictures of scenes, or the sounds of clips, as `to_inputs` takes them."""
    if isinstance(scenes[0], Clip):
        return {"audio": [clip.audio for clip in scenes]}
    return {"images": [scene.image for scene in scenes]}


def covered(inputs: Inputs, row: int, thing: Object | Event) -> torch.Tensor:
    """Return how much of each position's piece of a row's medium an object, or an event, covers: [pos]."""
    area = (thing.start, thing.stop) if isinstance(thing, Event) else torch.from_numpy(thing.mask)
    return inputs.overlap(area, row=row)[row]


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


def model_of(name: str, organisms: dict[str, HookedMLLM]) -> HookedMLLM:
    """Return the organism of that name, or with its weights shuffled where the name says so."""
    return random_weights(name.partition(",")[0]) if name in SHUFFLED else organisms[name]


@dataclass(frozen=True)
class Patched:
    """The effect [layer, site, pair], which pairs are answered correctly in both halves, and the metric's gap [pair]."""

    effect: torch.Tensor
    usable: torch.Tensor
    gap: torch.Tensor


def patched(model: HookedMLLM, pairs: Sequence, questions: Callable, sites: Callable, seed: int) -> Patched:
    """Patch the clean half of each pair into the corrupted one.

    `questions(model, pairs)` are both inputs and both nouns' tokens, `sites(inputs, pairs, seed)` the masks by name.
    """
    effects, usable, gaps = [], [], []
    for start in range(0, len(pairs), 40):
        batch = pairs[start : start + 40]
        clean, corrupted, right, wrong = questions(model, batch)
        with torch.no_grad():
            usable.append((model(clean)[:, -1].argmax(-1) == right) & (model(corrupted)[:, -1].argmax(-1) == wrong))
        found = activation_patching(
            model,
            clean=clean,
            corrupted=corrupted,
            metric=partial(metrics.logit_diff, correct=right, wrong=wrong),
            sites=sites(clean, batch, seed + start),
        )
        effects.append(found.effect)
        gaps.append(found.clean_metric - found.corrupted_metric)
    return Patched(torch.cat(effects, dim=-1), torch.cat(usable), torch.cat(gaps))


def recoveries(name, effect: torch.Tensor, which: torch.Tensor, sites: Sequence[str], report, expectations) -> torch.Tensor:
    """Return the mean effect of patching [layer, site] over the pairs that count, and put it in the table."""
    effect, kept = effect[:, :, which], which.nonzero()[:, 0].tolist()
    means = torch.zeros(effect.shape[:2])
    for layer in range(effect.shape[0]):
        for site, label in enumerate(sites):
            found = interval(effect[layer, site].tolist(), kept, expectations)
            means[layer, site] = found[0]
            report(f"patching: {name}: recovery before layer {layer}, {label}", *found, len(kept))
    return means


def inside_and_as_many_others(
    media: torch.Tensor, inside: Sequence[torch.Tensor], seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two masks [batch, pos]: a medium's positions that are `inside` (a mask per row), and as many random others."""
    generator = np.random.default_rng(seed)
    chosen, others = torch.zeros_like(media), torch.zeros_like(media)
    for row, here in enumerate(inside):
        positions = media[row].nonzero()[:, 0]
        outside = positions[~here]
        drawn = generator.choice(len(outside), size=min(int(here.sum()), len(outside)), replace=False)
        chosen[row, positions[here]] = True
        others[row, outside[torch.from_numpy(drawn)]] = True
    return chosen, others
