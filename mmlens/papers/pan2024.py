"""Pan et al. 2024 (arXiv 2311.07470), Finding and editing multi-modal neurons: presets and tables.

Theirs are LLaVA, InstructBLIP and mPLUG-Owl2 on SBU captions; scores and heat maps were released, metrics and editing were
not, and the tables' numbers are not known to us. What differs in the functions' defaults is named where they are; the
release's site is `gate_act` (`CONTRIBUTION`), ours is `post`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from mmlens.analysis import (
    Ranked,
    as_texts,
    cross_image_invariance,
    decode,
    lexical_overlap,
    logit_contribution,
    object_presence,
    perturb,
    region_invariance,
    semantic_sensitivity,
    shuffle_image,
    specificity,
)
from mmlens.model import HookedMLLM
from mmlens.neurons import Neurons, top_k
from mmlens.papers.captioned import Captioned, captioned
from mmlens.papers.intervals import row
from mmlens.papers.reproduction import Reproduction, Row
from mmlens.papers.shown import Shown
from mmlens.results import Provenance
from mmlens.targets import in_lexicon, nouns
from mmlens.targets.written import without_end

CONTRIBUTION: dict[str, Any] = dict(site="gate_act", norm=None)
"""`logit_contribution(..., **CONTRIBUTION)`: as released (methods B2)."""
EDITING: dict[str, Any] = dict(lr=5e-3, steps=50, gamma=0.1, alpha=1.0, beta=10.0, stop=0.9)
"""`fit_edit(..., **EDITING)`: the numbers of FiNE (methods E2), the nearest recipe that is known."""
NOISE: dict[str, Any] = dict(sigma=0.5)
"""`perturb(..., **NOISE)`: from memory of the paper (methods B7), of 5 neurons."""
PROMPT = "Describe the image in few words."

__all__ = ["CONTRIBUTION", "EDITING", "NOISE", "PROMPT", "reproduce"]


def reproduce(
    model: HookedMLLM,
    pictures: Sequence[Shown],
    *,
    prompt: str = PROMPT,
    is_noun: Callable[[str], bool] = in_lexicon,
    contribution: dict[str, Any] = CONTRIBUTION,
    k: int = 100,
    read: int = 10,
    noisy: int = 5,
    perturbed: int = 20,
    max_new_tokens: int = 50,
    seed: int = 0,
    progress: bool = False,
) -> Reproduction:
    """Return the paper's measures for this model and these pictures: what neurons say, what stays the same, what they cause.

    Each picture is captioned greedily; each of its nouns gets the neurons of largest contribution to its first token. Of the
    first `read` of them words are compared with the captions and objects; the first `k` are compared with those of the same
    noun where the picture's positions are shuffled, of the same noun in other pictures, and of other nouns. On the first
    `perturbed` pictures the output rows of a noun's first `noisy` neurons get noise, beside as many random ones. Formulas of
    the measures are ours (see `mmlens.analysis.properties`). Raises ValueError where fewer than two captions have a noun.
    """
    how: dict[str, Any] = dict(prompt=prompt, is_noun=is_noun, max_new_tokens=max_new_tokens, progress=progress)
    found = [(one, _rank(model, one, contribution, max(k, read, noisy))) for one in captioned(model, pictures, **how)]
    if len(found) < 2:
        raise ValueError(
            f"tables are of two pictures or more, of {len(pictures)} only {len(found)} got a caption with a noun"
        )
    rankings = [ranked for _, own in found for ranked, _ in own]
    rows = [
        *_sensitivity(model, found, read, seed),
        *_invariance(model, found, rankings, contribution, k, is_noun, max_new_tokens, seed),
        *_causal(model, found[:perturbed], noisy, max_new_tokens, seed),
    ]
    return Reproduction(
        paper="Pan et al. 2024",
        rows=tuple(rows),
        notes=(
            f"{len(found)} of {len(pictures)} pictures got a caption with a noun; the others are left out.",
            "The paper's tables are not known to us; the measures' formulas are ours, and so are the offline scorers.",
        ),
        provenance=Provenance.record(
            model, tuple(one.whole.digest() for one, _ in found), seed=seed, paper="pan2024", k=k, **contribution
        ),
    )


Found = tuple[Captioned, list[tuple[Ranked, torch.Tensor]]]


def _rank(model: HookedMLLM, one: Captioned, contribution: dict[str, Any], top: int) -> list[tuple[Ranked, torch.Tensor]]:
    """Return the neurons of each noun that a caption has (the first time), and the sign with which they acted."""
    scored = logit_contribution(model, one.whole, one.targets, **contribution)
    first = {word: index for index, word in reversed(list(enumerate(one.targets.words)))}
    found: list[tuple[Ranked, torch.Tensor]] = []
    for word, index in first.items():
        neurons = top_k(scored.scores[index], top, widths=model.widths)
        sign = torch.stack([scored.activation[index, layer, unit] for _, layer, unit in neurons])
        found.append((Ranked(one.shown.id, word, neurons), sign))
    return found


def _sensitivity(model: HookedMLLM, found: Sequence[Found], read: int, seed: int) -> list[Row]:
    texts: list[list[str]] = []
    signed: list[float] = []
    unsigned: list[float] = []
    for _, own in found:
        ours = [decode(model, ranked.neurons[:read], k=10, sign=sign[:read]) for ranked, sign in own]
        plain = [decode(model, ranked.neurons[:read], k=10) for ranked, _ in own]
        texts.append([text for decoding in ours for text in as_texts(decoding)])
        signed.append(_named(own, ours))
        unsigned.append(_named(own, plain))
    rows = [
        row("reading", f"noun among the words of its first {read}", "read with their sign", signed),
        row("reading", f"noun among the words of its first {read}", "without, as released", unsigned),
    ]
    references = {
        lexical_overlap: [one.shown.captions for one, _ in found],
        object_presence: [tuple(one.shown.objects) for one, _ in found],
    }
    for scorer, seen in references.items():
        if all(seen):
            both = semantic_sensitivity(texts, seen, scorer, seed=seed)
            name = scorer.__name__.replace("_", " ")
            rows.append(row("semantic sensitivity", name, "neurons", both.best.tolist()))
            rows.append(row("semantic sensitivity", name, "another picture's", both.shuffled.mean(0).tolist()))
    return rows


def _named(own: Sequence[tuple[Ranked, torch.Tensor]], decodings: Sequence[Any]) -> float:
    """Return the share of a picture's nouns that are among the words that their neurons write."""
    hits = [
        any(ranked.noun in {word.strip() for word in row} for row in decoding.words)
        for (ranked, _), decoding in zip(own, decodings, strict=True)
    ]
    return sum(hits) / len(hits)


def _invariance(
    model: HookedMLLM,
    found: Sequence[Found],
    rankings: Sequence[Ranked],
    contribution: dict[str, Any],
    k: int,
    is_noun: Callable[[str], bool],
    max_new_tokens: int,
    seed: int,
) -> list[Row]:
    after: list[Ranked] = []
    for one, own in found:
        hooks = shuffle_image(one.prompt, seed=seed)
        with model.hooks(fwd_hooks=hooks):
            written = model.generate(one.prompt, max_new_tokens=max_new_tokens)
            new = without_end(model, written.tokens[0, one.prompt.tokens.shape[1] :])
            whole, targets = nouns(model, one.prompt, new[None], is_noun=is_noun)
            if len(targets):
                again = Captioned(one.shown, one.prompt, whole, targets.first(), written.text[0])
                after += [ranked for ranked, _ in _rank(model, again, contribution, len(own[0][0].neurons))]
    region = region_invariance(rankings, after, k)
    across = list(cross_image_invariance(rankings, k).values())
    apart = specificity(rankings, k)
    rows = [
        row("invariance", f"region invariance, k = {k}", "same noun, shuffled picture", region.overlap.tolist()),
        row("invariance", f"region invariance, k = {k}", "by chance, same layers", region.chance.tolist()),
        row("invariance", f"cross-image invariance, k = {k}", "pairs of pictures", [one.pairwise for one in across]),
        row("invariance", f"cross-image invariance, k = {k}", "by chance, same layers", [one.chance for one in across]),
        row("specificity", f"1 - overlap of different nouns, k = {k}", "all pairs", (1 - apart.overlap).tolist()),
    ]
    same = apart.within(same_image=True)
    return [
        *rows,
        row("specificity", f"1 - overlap of different nouns, k = {k}", "one picture", (1 - apart.overlap[same]).tolist()),
    ]


def _causal(model: HookedMLLM, found: Sequence[Found], noisy: int, max_new_tokens: int, seed: int) -> list[Row]:
    """Return how often a caption's first noun is gone where its neurons' output rows, or random ones', have noise."""
    gone: dict[str, list[float]] = {"its own neurons": [], "random, same layers": []}
    for place, (one, own) in enumerate(found):
        ranked = own[0][0]
        neurons: Neurons = ranked.neurons[:noisy]
        for name, chosen in zip(gone, (neurons, neurons.random_like(seed=seed * 1000 + place)), strict=True):
            with perturb(model, chosen, seed=seed * 1000 + place, **NOISE):
                text = model.generate(one.prompt, max_new_tokens=max_new_tokens).text[0]
            gone[name].append(float(ranked.noun not in text.split()))
    return [row("causal effect", f"noun gone with noise on {noisy} neurons", name, values) for name, values in gone.items()]
