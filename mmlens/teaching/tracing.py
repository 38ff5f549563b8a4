"""Exercises of 07_patching_images, 08_last_token and 10_circuits: which positions, heads and edges bring the answer."""

from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmlens import metrics
from mmlens.analysis import AttentionRows, Circuit, activation_patching, attention_rows, circuit
from mmlens.hooks import knock_out
from mmlens.inputs import Inputs
from mmlens.organisms import pictoworld
from mmlens.teaching.exercise import compared, exercise, told_apart
from mmlens.teaching.reading import number, pair, whole
from mmlens.teaching.shared import organism


def paired(pairs: list[pictoworld.Pair]) -> dict[str, Any]:
    """Return the clean and corrupted inputs of pairs of scenes, and the tokens of the nouns in which they differ."""
    model, objects = organism("pictoworld-frozen"), [one.clean.objects[one.index] for one in pairs]
    clean = model.to_inputs(
        [f"what is at the {thing.place} ? answer :" for thing in objects],
        images=[one.clean.image for one in pairs],
        answer=[f"a {thing.color}" for thing in objects],
    )
    corrupted = model.with_images(clean, [one.corrupted.image for one in pairs])
    wrong = [one.corrupted.objects[one.index].noun for one in pairs]
    tokens = [torch.tensor([model.to_token(noun) for noun in names]) for names in ([o.noun for o in objects], wrong)]
    return dict(clean=clean, corrupted=corrupted, correct=tokens[0], wrong=tokens[1])


@cache
def answered() -> list[pictoworld.Pair]:
    """Return the 24 pairs of scenes that the notebook keeps: both halves are answered right."""
    model, pairs = organism("pictoworld-frozen"), pictoworld.pairs("held_out", n=40, seed=21)
    those = paired(pairs)
    says = [model(those[half])[:, -1].argmax(-1) for half in ("clean", "corrupted")]
    both = (says[0] == those["correct"]) & (says[1] == those["wrong"])
    return [pairs[i] for i in both.nonzero()[:24, 0].tolist()]


def patched(pairs: list[pictoworld.Pair], **how: Any) -> Any:
    """Return what patching the clean run of these pairs into the corrupted one restores."""
    those = paired(pairs)
    metric = partial(metrics.logit_diff, correct=those["correct"], wrong=those["wrong"])
    runs = dict(clean=those["clean"], corrupted=those["corrupted"])
    return activation_patching(organism("pictoworld-frozen"), metric=metric, **runs, **how)


@cache
def head_by_head() -> Tensor:
    """Return what each head restores at the last position, [layer, head]."""
    last, heads = paired(answered())["clean"].last(), range(organism("pictoworld-frozen").cfg.n_heads)
    return patched(answered(), activation="z", sites={"last": last}, heads=heads).mean[:, 0]


@exercise("07/which-head", pair)
def which_head(given: tuple[int, int]) -> str | None:
    """Which head restores most of the difference at the last position? `by_head.mean` is [layer, site, head]; answer with
    (layer, head).
    """
    best = divmod(int(head_by_head().argmax()), head_by_head().shape[1])
    second = divmod(int(head_by_head().flatten().topk(2).indices[1]), head_by_head().shape[1])
    mistakes = {
        "nearly: that is the second": [second],
        "that one restores least": [divmod(int(head_by_head().argmin()), head_by_head().shape[1])],
        "one off: layers and heads are counted from 0": [(best[0] + 1, best[1] + 1), (best[0] + 1, best[1])],
    }
    return told_apart(
        given, best, mistakes, "by_head.mean[:, 0] is [layer, head]: the argmax is a flat index, layer by layer"
    )


@cache
def position_by_position() -> tuple[Inputs, Float[Tensor, " pos"]]:
    """Return the notebook's one pair, its clean half, and what each position of it restores before layer 2."""
    one = [answered()[1]]
    clean: Inputs = paired(one)["clean"]
    places = torch.arange(clean.tokens.shape[1])
    sites = {str(place): places[None] == place for place in places.tolist()}
    return clean, patched(one, sites=sites, layers=[2]).mean[0]


@exercise("07/which-position", whole)
def which_position(given: int) -> str | None:
    """Which *position of the stream* restores most for the one pair if it is patched before layer 2? `by_position.mean` is
    [layer, position].
    """
    clean, restored = position_by_position()
    places = len(restored)
    right, start = int(restored.argmax()), int(clean.mask("image")[0].nonzero()[0])
    mistakes = {
        "that is the place within the picture: the stream begins with a start mark": [right - start],
        "that is the last position: it leads only before later layers": [places - 1],
        "that is where least comes back": [int(restored.argmin())],
    }
    return told_apart(given, right, mistakes, "by_position.mean[2] is what enters layer 2")


@exercise("07/how-much-is-back", number)
def how_much_is_back(given: float) -> str | None:
    """A clean run has a logit difference of 7, the corrupted one -3, the corrupted one with a patch 4.5. How much does the
    patch restore, on the scale on which the corrupted run is 0 and the clean one 1?
    """
    clean, corrupted, now = 7.0, -3.0, 4.5
    mistakes = {
        "that is what is still missing": (clean - now) / (clean - corrupted),
        "that is a share of the clean difference: the corrupted run is the 0 of this scale": now / clean,
        "the corrupted run has a negative difference: subtracting it adds": (now + corrupted) / (clean + corrupted),
        "that is the change in logits: divide by how far apart the two runs are": now - corrupted,
    }
    return compared(given, (now - corrupted) / (clean - corrupted), mistakes, "(patched - corrupted) / (clean - corrupted)")


@cache
def colours() -> tuple[Inputs, Int[Tensor, " batch"], Bool[Tensor, "batch pos"]]:
    """Return the questions about a colour on 16 scenes, the nouns that answer them, and where the asked objects are."""
    model = organism("pictoworld-frozen")
    rows = [(s, q) for s in pictoworld.scenes("held_out", n=16) for q in s.questions if q.kind == "color"]
    inputs = model.to_inputs([q.text for _, q in rows], images=[scene.image for scene, _ in rows], answer="the")
    shown = torch.zeros_like(inputs.mask("image"))
    for row, (scene, question) in enumerate(rows):
        thing = next(thing for thing in scene.objects if thing.color in question.text.split())
        shown |= inputs.overlap(torch.from_numpy(thing.mask), row=row) > 0
    return inputs, torch.tensor([model.to_token(q.answer.split()[1]) for _, q in rows]), shown


@cache
def looks() -> AttentionRows:
    """Return where the last position of each of these questions looks, in every layer."""
    return attention_rows(organism("pictoworld-frozen"), colours()[0])


@exercise("08/most-looked-at", whole)
def most_looked_at(given: int) -> str | None:
    """Which position of the stream does the last position of the *first* question attend to most in layer 2, averaged over
    heads? `seen.pattern` is [layer, batch, head, query, key], and `seen.layers` says which layers these are.
    """
    pattern = looks().pattern[1:4, :, :, 0]
    most = pattern[:, 0].mean(1).argmax(-1).tolist()
    mistakes = {
        "that is layer 3: seen begins with layer 1": [most[2]],
        "that is layer 1": [most[0]],
        "that is the place within the picture: the stream begins with a start mark": [most[1] - 1],
        "that is the average over all questions: the first row alone": [int(pattern[1].mean((0, 1)).argmax())],
    }
    return told_apart(given, most[1], mistakes, "mean over the head axis, then the argmax over keys")


@exercise("08/which-head", pair)
def finding_head(given: tuple[int, int]) -> str | None:
    """Which head puts most of the last position's attention on the asked object, over all questions? `every.mass(shown)` is
    [layer, batch, head, query]; answer with (layer, head).
    """
    mass = looks().mass(colours()[2])[..., 0].mean(1)
    best = divmod(int(mass.argmax()), mass.shape[1])
    picture = looks().mass("image")[..., 0].mean(1)
    mistakes = {
        "that is (head, layer): the layer comes first": [best[::-1]],
        "nearly: that is the second": [divmod(int(mass.flatten().topk(2).indices[1]), mass.shape[1])],
        "that head looks most at the picture, not at the object": [divmod(int(picture.argmax()), mass.shape[1])],
        "one off: layers and heads are counted from 0": [(best[0] + 1, best[1] + 1), (best[0] + 1, best[1])],
    }
    return told_apart(given, best, mistakes, "mean over the batch first; divmod takes the flat argmax apart")


@cache
def hidden(what: str, *layers: int) -> Float[Tensor, " batch"]:
    """Return the log-probabilities of the nouns with something hidden from the last position in these layers."""
    inputs, nouns, shown = colours()
    keys = {"object": shown, "picture": inputs.mask("image")}[what]
    off = knock_out(inputs.last(), keys, layers=layers) if layers else []
    return metrics.log_prob(organism("pictoworld-frozen").run_with_hooks(inputs, fwd_hooks=off), nouns)


@exercise("08/three-layers", number)
def three_layers(given: float) -> str | None:
    """Is layer 3 a spare for layers 1 and 2? Hide the asked object from the last position in layers 1, 2 and 3 at once: by
    how many nats does the log-probability of the noun change, on average?
    """
    clean, without = hidden("object"), hidden("object", 1, 2, 3)
    differ = {
        "that is layers 1 and 2 without layer 3": hidden("object", 1, 2) - clean,
        "that is the whole picture: hide `shown` only": hidden("picture", 1, 2, 3) - clean,
        "those are layers 0 to 2": hidden("object", 0, 1, 2) - clean,
        "that is a mean of probabilities: log-probabilities are asked for": without.exp() - clean.exp(),
    }
    mistakes = {hint: change.mean().item() for hint, change in differ.items()}
    right = (without - clean).mean().item()
    return compared(given, right, mistakes, "knock_out_effect with window=3, or hooks.knock_out")


@cache
def contrasted(change: str) -> dict[str, Any]:
    """Return what the circuit of a change ("picture", "question") is found on, in the first twelve clear pairs."""
    model, rows = organism("pictoworld"), []
    for one in pictoworld.pairs("held_out", n=60, seed=61):
        objects, new = one.clean.objects, one.corrupted.objects[one.index]
        nouns = {model.to_token(thing.noun) for thing in (*objects, new)}
        if len(objects) == len({thing.color for thing in objects}) == len(nouns) - 1 > 1:
            rows.append((one, objects[one.index], objects[one.index - 1], new))
    rows = rows[:12]
    words = [[f"which object is {thing.color} ? answer : the" for thing in (target, other)] for _, target, other, _ in rows]
    images = [one.clean.image for one, *_ in rows]
    clean, turned = (model.to_inputs([pair[n] for pair in words], images=images) for n in (0, 1))
    changed = model.with_images(clean, [one.corrupted.image for one, *_ in rows])
    seen = [torch.from_numpy(target.mask | new.mask) for _, target, _, new in rows]
    thing = torch.stack([clean.overlap(mask, row=row) for row, mask in enumerate(seen)]).sum(0) > 0
    words_for_it = torch.tensor([model.to_token(target.color) for _, target, *_ in rows])
    right = torch.tensor([model.to_token(target.noun) for _, target, *_ in rows])
    wrong = torch.tensor([model.to_token((new if change == "picture" else other).noun) for *_, other, new in rows])
    return dict(
        clean=clean,
        corrupted=changed if change == "picture" else turned,
        metric=partial(metrics.logit_diff, correct=right, wrong=wrong),
        sites={
            "object": thing,
            "other image": clean.mask("image") & ~thing,
            "colour": clean.tokens == words_for_it[:, None],
            "last": clean.last(),
        },
    )


@cache
def found(change: str) -> Circuit:
    """Return the circuit that the notebook finds for a change."""
    return circuit(organism("pictoworld"), **contrasted(change), method="eap-ig")


@exercise("10/which-queries", pair)
def which_queries(given: tuple[int, int]) -> str | None:
    """Into the queries of which head do the edges of `found["question"]` carry most (the sum of absolute scores)? A
    destination reads as `L0H3.q` does; answer with (layer, head).
    """

    def ranked(change: str, way: str) -> list[tuple[int, int]]:
        edges = found(change).edges()
        own = edges[edges.destination.str.endswith(f".{way}")]
        sums = own.score.abs().groupby(own.destination).sum().sort_values(ascending=False)
        return [(int(name[1 : name.index("H")]), int(name[name.index("H") + 1 : -2])) for name in sums.index]

    best, second, *_ = ranked("question", "q")
    mistakes = {
        "that is (head, layer): the layer comes first": [best[::-1]],
        "nearly: that is the second": [second],
        "that is through its values, which bring: queries end in .q": ranked("question", "v")[:1],
        "that is the picture's circuit": ranked("picture", "q")[:1],
        "one off: layers and heads are counted from 0": [(best[0] + 1, best[1] + 1), (best[0] + 1, best[1])],
    }
    return told_apart(given, best, mistakes, "group edges() by their destination and add up score.abs()")


@exercise("10/in-common", number)
def in_common(given: float) -> str | None:
    """Two circuits share about half of their largest 80 edges. Does that become more with twice as many? Take the largest
    160 of each (`found[change].top(160)`) and give their Jaccard index: edges in both by edges in either.
    """
    one, other = found("picture").top(160), found("question").top(160)
    few = [found(change).top(80) for change in ("picture", "question")]
    both = len(one & other)
    mistakes = {
        "that is how many they share: divide by how many are in either": float(both),
        "that is the share of one circuit: the Jaccard index divides by the union": both / 160,
        "that is the share of the picture's circuit: the Jaccard index divides by the union": both / len(one),
        "edges in both are counted twice in the sum of their sizes": both / (len(one) + len(other)),
        "that is with 80 edges each": len(few[0] & few[1]) / len(few[0] | few[1]),
        "that is of all edges, which both have": 1.0,
    }
    return compared(given, both / len(one | other), mistakes, "circuits are sets: len(a & b) / len(a | b)")


@exercise("10/turned-away", pair)
def turned_away(given: tuple[int, int]) -> str | None:
    """Which head turns away from the object most when another one is asked for: whose share in `looks["clean"]` is larger
    than in `looks["corrupted"]` by most? Answer with (layer, head).
    """
    runs, thing = contrasted("question"), contrasted("question")["sites"]["object"]
    clean, corrupted = (
        attention_rows(organism("pictoworld"), runs[name]).mass(thing)[..., 0].mean(1) for name in ("clean", "corrupted")
    )
    best, most, other, least = (
        divmod(int(values.argmax()), clean.shape[1]) for values in (clean - corrupted, clean, corrupted, corrupted - clean)
    )
    mistakes = {
        "that is (head, layer): the layer comes first": [best[::-1]],
        "that head looks at it most when it is asked for, and a little when it is not: take the difference": [most],
        "that head looks at it most when another one is asked for": [other],
        "the other way round: that is corrupted less clean": [least],
        "one off: layers and heads are counted from 0": [(best[0] + 1, best[1] + 1), (best[0] + 1, best[1])],
    }
    return told_apart(given, best, mistakes, "looks are [layer, head]: divmod takes the flat argmax of a difference apart")
