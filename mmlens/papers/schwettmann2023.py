"""Schwettmann et al. 2023 (arXiv 2308.01544), Multimodal neurons in pretrained text-only transformers: presets and tables.

Theirs is GPT-J-6B behind BEiT and one linear map, on COCO; nothing but the model was released, so numbers are the paper's.
What differs from the paper in the functions' defaults is named where they are (`ATTRIBUTION` takes the paper's site, `pre`).
Here, neurons are read with the sign with which they acted, which gated ones need (GPT-J has no gate).
"""

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import torch

from mmlens.analysis import (
    Region,
    ablation_conditions,
    as_texts,
    concept_overlap,
    decode,
    grad_x_activation,
    interpretable,
    layer_histogram,
    lexical_overlap,
    nearest_tokens,
    semantic_sensitivity,
)
from mmlens.analysis.decoding import ORGANISM_WORDS
from mmlens.model import HookedMLLM
from mmlens.neurons import Neurons, top_k
from mmlens.papers.captioned import Captioned, captioned
from mmlens.papers.golden import GOLDEN, GoldenUnits, golden_units
from mmlens.papers.intervals import number, row
from mmlens.papers.reproduction import Reproduction, Row
from mmlens.papers.shown import Shown
from mmlens.results import Provenance
from mmlens.targets import in_lexicon

ATTRIBUTION: dict[str, Any] = dict(site="pre", reduce="max")
"""`grad_x_activation(..., **ATTRIBUTION)`: the literal reading of eq. 2 (methods A2), at the neuron's input."""
DECODING: dict[str, Any] = dict(k=10)
INTERPRETABLE: dict[str, Any] = dict(least=7, of=10, letters=3)
PROMPT = "A picture of"
TOP = 100
KS = (0, 50, 100, 200, 400, 800, 1600, 3200, 6400)
"""Of GPT-J's 458,752 neurons (methods A11)."""
SCORES: dict[str, tuple[float, float]] = {"BERTScore": (0.3848, 0.3627), "CLIPScore": (23.43, 21.74)}
"""Table 1: multimodal neurons, and neurons of other pictures."""

__all__ = ["ATTRIBUTION", "DECODING", "GOLDEN", "INTERPRETABLE", "KS", "PROMPT", "GoldenUnits", "golden_units", "reproduce"]


def reproduce(
    model: HookedMLLM,
    pictures: Sequence[Shown],
    *,
    prompt: str = PROMPT,
    is_noun: Callable[[str], bool] = in_lexicon,
    words: Container[str] = ORGANISM_WORDS,
    scorers: Mapping[str, Callable[[str, Any], float]] | None = None,
    attribution: Mapping[str, Any] = ATTRIBUTION,
    top: int = TOP,
    mapped: int = 5,
    ks: Sequence[int] = (0, 10, 50, 100),
    ablated: int = 20,
    draws: int = 3,
    max_new_tokens: int = 20,
    seed: int = 0,
    progress: bool = False,
) -> Reproduction:
    """Return the paper's tables for this model and these pictures, with the paper's own numbers beside them.

    Each picture is captioned greedily behind `prompt`; the first noun's first token is what neurons are scored for. `top`
    neurons of each picture are decoded (`words` says which words are interpretable), `mapped` of them laid over the object
    of that name, and on the first `ablated` pictures the first `ks` are zeroed at all positions, `draws` random sets beside.
    `scorers` are of Table 1, (text, captions or picture) -> number, under the paper's names where they are its metrics
    (`{"BERTScore": f}` gets the captions, `{"CLIPScore": f}` the picture); offline it is `lexical_overlap`, which is not the
    paper's. Raises ValueError where fewer than two captions have a noun.
    """
    how: dict[str, Any] = dict(prompt=prompt, is_noun=is_noun, max_new_tokens=max_new_tokens, progress=progress)
    found = [_read(model, one, attribution, top) for one in captioned(model, pictures, **how)]
    if len(found) < 2:
        raise ValueError(
            f"tables are of two pictures or more, of {len(pictures)} only {len(found)} got a caption with a noun"
        )
    known = [interpretable(decoding, words, **INTERPRETABLE) for _, _, decoding in found]
    rows = [
        *_agreement(found, scorers or {"lexical overlap": lexical_overlap}, seed),
        *_prompts(model, found, seed),
        *_overlap(model, found, mapped, draws, seed),
        *_ablation(model, found[:ablated], known, ks, draws, seed),
        *_layers(found, known, top),
    ]
    return Reproduction(
        paper="Schwettmann et al. 2023",
        rows=tuple(rows),
        notes=(
            f"{len(found)} of {len(pictures)} pictures got a caption with a noun; the others are left out.",
            "The paper's numbers are of GPT-J-6B behind BEiT on COCO.",
            "Lexical overlap, where it is given, knows nothing of meaning: it is ours, for want of the paper's metrics.",
        ),
        provenance=Provenance.record(
            model,
            tuple(one.whole.digest() for one, _, _ in found),
            seed=seed,
            paper="schwettmann2023",
            top=top,
            **attribution,
        ),
    )


Found = tuple[Captioned, Neurons, Any]


def _read(model: HookedMLLM, one: Captioned, attribution: Mapping[str, Any], top: int) -> Found:
    """Return a picture with the neurons of its caption's first noun, and what they write with their sign."""
    scored = grad_x_activation(model, one.up_to(model, 0), one.targets.token[:1], **attribution)
    neurons = top_k(scored.scores[0], top, widths=model.widths)
    assert scored.activation is not None, "the strongest position's activation is there unless everything is summed"
    sign = torch.stack([scored.activation[0, layer, unit] for _, layer, unit in neurons])
    return one, neurons, decode(model, neurons, sign=sign, **DECODING)


def _agreement(found: Sequence[Found], scorers: Mapping[str, Callable[[str, Any], float]], seed: int) -> list[Row]:
    texts = [as_texts(decoding) for _, _, decoding in found]
    rows: list[Row] = []
    for name, scorer in scorers.items():
        seen = [one.shown.image if name == "CLIPScore" else one.shown.captions for one, _, _ in found]
        both = semantic_sensitivity(texts, seen, scorer, seed=seed)
        ours, shuffled = SCORES.get(name, (None, None))
        tag = "none" if ours is None else "paper"
        rows.append(row("Table 1", name, "neurons", both.best.tolist(), paper=ours, tag=tag))
        rows.append(
            row("Table 1", name, "another picture's neurons", both.shuffled.mean(0).tolist(), paper=shuffled, tag=tag)
        )
    return rows


def _prompts(model: HookedMLLM, found: Sequence[Found], seed: int) -> list[Row]:
    """Return how often a position's nearest embeddings have a word of the caption, beside random vectors."""
    rates: list[float] = []
    distances: list[float] = []
    for one, _, _ in found:
        near = nearest_tokens(model, one.prompt, k=5, seed=seed)
        wanted = set(one.caption.split())
        rates.append(sum(bool(wanted & {word.strip() for word in words}) for words in near.words) / len(near.words))
        distances.append(near.ks_statistic["norm"])
    return [
        row("Table 2", "positions with a word of the caption among 5 nearest", "image prompts", rates),
        row("Table 2", "KS distance of cosines from random vectors", "image prompts", distances),
    ]


def _overlap(model: HookedMLLM, found: Sequence[Found], mapped: int, draws: int, seed: int) -> list[Row]:
    regions = [
        Region(one.targets.words[0], one.prompt, one.shown.objects[one.targets.words[0]], neurons[:mapped])
        for one, neurons, _ in found
        if one.targets.words[0] in one.shown.objects and one.prompt.grids[0][0] is not None
    ]
    if not regions:
        return []
    both = concept_overlap(model, regions, draws=draws, seed=seed)
    return [
        row("Fig. 5", "IoU with the object", "neurons", both.iou.tolist()),
        row("Fig. 5", "IoU with the object", "random, same layers", both.random_iou.mean(0).tolist()),
        row("Fig. 5", "IoU with the object", "the most that its size allows", both.bound.tolist()),
    ]


def _ablation(
    model: HookedMLLM, found: Sequence[Found], known: Sequence[Any], ks: Sequence[int], draws: int, seed: int
) -> list[Row]:
    changes: dict[tuple[str, int], list[float]] = {}
    for (one, neurons, _), flags in zip(found, known, strict=False):
        inputs, token = one.up_to(model, 0), one.targets.token[:1]
        how: dict[str, Any] = dict(ks=ks, where=inputs.mask("all"), draws=draws, seed=seed)
        table: dict[Any, dict[Any, float]] = (
            ablation_conditions(model, inputs, token, neurons, flags, **how).table().to_dict()
        )
        for condition in ("all", "interpretable", "random"):
            for k, change in table[condition].items():
                if change == change:  # there are so many of them
                    changes.setdefault((condition, int(k)), []).append(change)
    return [
        row("S.5", f"change of P(noun), {k} zeroed", condition, values)
        for (condition, k), values in sorted(changes.items(), key=lambda item: (item[0][1], item[0][0]))
        if k
    ]


def _layers(found: Sequence[Found], known: Sequence[Any], top: int) -> list[Row]:
    counts = layer_histogram([neurons for _, neurons, _ in found]).double()
    middle = int((counts.cumsum(0) >= counts.sum() / 2).nonzero()[0])
    share = [float(flags.double().mean()) for flags in known]
    return [
        row("S.6", "share that is interpretable", f"top {top}", share, paper=0.5, tag="paper"),
        number(
            "S.6",
            "median layer of unique neurons, as a share of depth",
            f"top {top}",
            middle / (len(counts) - 1),
            len(found),
        ),
    ]
