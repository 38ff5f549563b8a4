"""The edges along which the picture reaches the answer, found on some pairs of scenes and tried on others."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial, reduce

import networkx
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmlens import metrics, plot
from mmlens.analysis import Circuit, Faithfulness, circuit, faithfulness
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.organisms import pictoworld
from mmlens.tour.case import color_question, distinct_pairs
from mmlens.tour.found import Found
from mmlens.tour.page import Section

FOUND_ON, TRIED_ON = 10, 10  # pairs
DRAWN, SIZES, DRAWS = 40, (40, 80, 160), 1
LEFT_OUT = Section(
    "Which circuit, and what would an edit change?",
    "Left out here. A circuit is found on pairs of scenes that differ in one object, and an edit is fitted and tried on "
    "other scenes with the same word: a Pictoworld model has them, asked the tour's own question about a scene, where its "
    "answer is right and the word that is traced is the object's noun.",
)


@dataclass(frozen=True)
class Asked:
    """Pairs of scenes as `circuit` and `faithfulness` take them: each asked for the object that differs."""

    clean: Inputs
    corrupted: Inputs
    metric: Callable[[Tensor], Tensor]
    sites: dict[str, Bool[Tensor, "batch pos"]]

    @classmethod
    def of(cls, model: HookedMLLM, pairs: Sequence[pictoworld.Pair], answer: str) -> "Asked":
        """Return the pairs, each answered with `answer`, up to its noun."""
        things = [pair.clean.objects[pair.index] for pair in pairs]
        others = [pair.corrupted.objects[pair.index] for pair in pairs]
        clean = model.to_inputs(
            [color_question(model, thing.color) for thing in things],
            images=[pair.clean.image for pair in pairs],
            answer=answer,
        )
        masks = [torch.from_numpy(a.mask | b.mask) for a, b in zip(things, others, strict=True)]
        at_object = reduce(torch.logical_or, (clean.overlap(mask, row=row) > 0 for row, mask in enumerate(masks)))
        right, wrong = (torch.tensor([model.to_token(one.noun) for one in ones]) for ones in (things, others))
        colors = torch.tensor([model.to_token(thing.color) for thing in things], device=clean.tokens.device)
        return cls(
            clean=clean,
            corrupted=model.with_images(clean, [pair.corrupted.image for pair in pairs]),
            metric=partial(metrics.logit_diff, correct=right, wrong=wrong),
            sites={
                "object": at_object,
                "other image": clean.mask("image") & ~at_object,
                "colour": clean.tokens == colors[:, None],
                "last": clean.last(),
            },
        )


def sections(model: HookedMLLM, found: Found, pair: pictoworld.Pair) -> list[Section]:
    """Return the sections on the circuit of the tour's pair and nine others, and on how it does on ten more."""
    others = [one for one in distinct_pairs(found.seed) if one.clean.seed != pair.clean.seed]
    said = model.tokenizer.decode(found.new.tolist()).strip()
    own = Asked.of(model, [pair, *others[: FOUND_ON - 1]], said)
    fresh = Asked.of(model, others[FOUND_ON - 1 : FOUND_ON - 1 + TRIED_ON], said)
    result = circuit(model, clean=own.clean, corrupted=own.corrupted, metric=own.metric, sites=own.sites, method="eap-ig")
    found.save("circuit", result)
    tried = faithfulness(
        model,
        result,
        clean=fresh.clean,
        corrupted=fresh.corrupted,
        metric=fresh.metric,
        sites=fresh.sites,
        sizes=SIZES,
        controls=("random",),
        draws=DRAWS,
        seed=found.seed,
    )
    found.save("faithfulness", tried)
    drawn = result.top(DRAWN)
    return [
        Section(
            "Along which edges does the picture reach the answer?",
            sentence(result, drawn),
            plot.circuit(drawn, inputs=own.clean, sites=own.sites) if len(drawn) else None,
            f"A graph of {len(drawn)} edges from regions of the picture and words through heads and MLPs to the logits",
            "Below, what enters; above, the logits. An edge leads from what writes into the stream to a head (as queries, "
            "keys or values) or an MLP that reads it. Its score is what the metric, the logit difference, gains where that "
            "edge is as for the first picture (EAP-IG: by gradients, integrated from the changed picture to the first).",
        ),
        Section(
            "Do these edges alone carry the answer?",
            tried_sentence(tried),
            plot.faithfulness(tried),
            "How much of the answer circuits keep by their number of edges, alone and left out, beside random edges",
            "1: the logit difference of the first picture; 0: that of the changed one. Alone: all other edges are as for "
            "the changed picture. Without: all edges but these are as for the first. Random edges also lead from what "
            "enters to the logits.",
        ),
    ]


def sentence(result: Circuit, drawn: Circuit) -> str:
    """Return what the pictures' difference is, where it enters, and the widest way that it takes."""
    clean, corrupted = float(result.clean_metric.mean()), float(result.corrupted_metric.mean())
    values = [round(value, 1) + 0.0 for value in result.outgoing().mean(-1).tolist()]
    entering = dict(zip(result.graph.sources, values, strict=True))
    opening = (
        f"Over {result.scores.shape[-1]} pairs of scenes, this one first, in which one object differs, the logit of its "
        f"noun minus that of the other's is {clean:.1f} for the first picture and {corrupted:.1f} for the changed one. Of "
        f"these {clean - corrupted:.1f}, {entering['object']:.1f} enter at the object and {entering['other image']:.1f} "
        f"elsewhere in the picture, by all {len(result):,} edges' scores."
    )
    route = widest(drawn)
    if not route:
        return f"{opening} The {DRAWN} largest edges hold no whole way from the object to the logits."
    return (
        f"{opening} Of the {DRAWN} largest edges, the {len(drawn)} on whole ways from what enters to the logits are drawn. "
        f"The object's widest way: {' → '.join(route)}."
    )


def widest(drawn: Circuit, site: str = "object") -> list[str]:
    """Return the shortest way from a site to the logits where a large score is a short edge, if any leads there."""
    graph = drawn.to_networkx()
    if site not in graph or not networkx.has_path(graph, site, "logits"):
        return []

    def length(source: str, end: str, ways: dict[str, dict[str, float]]) -> float:
        return 1 / max(abs(way["score"]) for way in ways.values())

    return networkx.shortest_path(graph, site, "logits", weight=length)


def tried_sentence(tried: Faithfulness) -> str:
    """Return what each size keeps of the answer alone and without, beside the random control."""
    random = tried.controls["random"].nanmean(0)
    enough = tried.size_for(0.8)
    end = f"four fifths are kept from {enough} edges on" if enough else "none of them keeps four fifths"
    return (
        f"On {tried.alone.shape[-1]} other pairs, circuits of {_and(str(n) for n in tried.sizes.tolist())} edges keep "
        f"{_shares(tried.alone)} of the logit difference alone, as many random edges {_shares(random)}. All edges but these "
        f"keep {_shares(tried.without)}. Of the sizes tried, {end}."
    )


def _shares(values: Float[Tensor, "size batch"]) -> str:
    return _and(f"{round(value, 2) + 0.0:.2f}" for value in values.nanmean(-1).tolist())


def _and(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}"
