"""What is planted in the language model: which unit and which head reads and writes which coordinate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from mmlens.neurons import Neurons
from mmlens.results import Storable
from mmlens.testing.plants.layout import (
    BY_MODALITY,
    CARRIED,
    DOMAINS,
    EITHER,
    HOW,
    NOUNS,
    SILENCED,
    VEIL,
    WHAT,
    WHEN,
    Seen,
)

LAYERS, HEADS, KV_HEADS, D_HEAD, D_MLP = 4, 4, 2, 20, 96
SLOPE, UP = 20.0, 0.2  # a unit's gate rises by SLOPE for every 1 of what it reads; its linear branch is always UP
REST, SEEK, MEDIA, TEXT = 9.0, 15.0, 13.0, 10.0  # attention scores: the first token's, a shown thing's, any position's
HOME, CALL = D_HEAD // 2 - 2, D_HEAD // 2 - 1  # the two slowest rotary pairs, in which distance hardly counts


Head = tuple[int, int]


@dataclass(frozen=True)
class AnswerKey(Storable):
    """Where everything is in a planted model: neurons by what they write, heads as (layer, head), coordinates by name.

    `concepts[noun]`: fire (post about 2) at the medium's positions that show the noun, nowhere else, and write it there.
    `domains[name]`, `modalities["text" | "image" | "audio"]`: fire where that is shown, and write there what it is.
    `carried[noun]`: fire at the asking position, to which the head `carry` brings what is shown, and write the noun.
    `pair`: two that fire where a lamp is shown, each enough; `clamp`: the two behind them (the first minus the second)
    that say "lamp" once, whether one or both fire. `inhibitor`: fires at the asking position where a veil is shown, to
    which the head `veil` brings it, and pushes "sun" below every other answer.

    Heads, beside those: `speak` brings nouns, `domain` and `modality` what their units write to the asking position;
    `sink` rests on the first token from everywhere, and so do all others where they seek nothing. A head of layer l moves
    its cargo in block l: before that block it is at the medium's positions, behind it at the asking one. `pitches` are the
    tones of a sound, in Hz.
    """

    modality: str
    layout: dict[str, int]
    concepts: dict[str, Neurons]
    domains: dict[str, Neurons]
    modalities: dict[str, Neurons]
    carried: dict[str, Neurons]
    pair: Neurons
    clamp: Neurons
    inhibitor: Neurons
    heads: dict[str, Head]
    pitches: dict[str, float]

    def neurons(self) -> Neurons:
        """Return every planted neuron."""
        groups = [*self.concepts.values(), *self.domains.values(), *self.modalities.values(), *self.carried.values()]
        everyone = self.pair | self.clamp | self.inhibitor
        for group in groups:
            everyone = everyone | group
        return everyone


@dataclass(frozen=True)
class Wire:
    """Entries of one vector of a weight by coordinate: a row of what reads the stream, a column of what writes to it."""

    weight: str
    index: int
    values: Mapping[str, float]

    @property
    def writes(self) -> bool:
        """Whether the vector is a column."""
        return "down_proj" in self.weight or "o_proj" in self.weight


def plant(
    modality: Seen, layout: dict[str, int], pitches: dict[str, float], generator: torch.Generator
) -> tuple[list[Wire], AnswerKey]:
    """Return every wire of the planted circuits, in units and heads drawn at random, and where they are."""
    widths = {"language": (D_MLP,) * LAYERS}
    free = [torch.randperm(D_MLP, generator=generator).tolist() for _ in range(LAYERS)]
    wires: list[Wire] = []

    def units(*layers: int, reads: str, writes: Mapping[str, float]) -> Neurons:
        """Plant a unit in each of `layers` that fires where `reads` is 1; together they write `writes`."""
        chosen = [(layer, free[layer].pop()) for layer in layers]
        for layer, unit in chosen:
            wires.extend(_unit(layer, unit, reads, {name: value / len(layers) for name, value in writes.items()}))
        return Neurons.of(chosen, widths)

    def clamp() -> Neurons:
        """Plant (x - 0.3) / 0.4 between 0 and 1 of the coordinate `either`: 0 where nothing fires, 1 for one or for two."""
        chosen, slope = [(1, free[1].pop()), (1, free[1].pop())], 50.0
        for (layer, unit), at, sign in zip(chosen, (0.3, 0.7), (1, -1), strict=True):
            mlp, rise = f"layers.{layer}.mlp", slope * 0.4
            wires.append(Wire(f"{mlp}.gate_proj.weight", unit, {"either": slope, "const": -slope * at}))
            wires.append(Wire(f"{mlp}.up_proj.weight", unit, {"const": 1.0}))
            wires.append(Wire(f"{mlp}.down_proj.weight", unit, {f"say:{EITHER}": sign / rise}))
        return Neurons.of(chosen, widths)

    group = torch.randint(KV_HEADS, (LAYERS,), generator=generator).tolist()
    member = torch.randint(HEADS // KV_HEADS, (LAYERS, 2), generator=generator).tolist()

    def head(layer: int, second: bool, asks: str | None, seeks: Mapping[str, float], copies: Mapping[str, str]) -> Head:
        """Plant a head that, where `asks` is 1, looks at what it `seeks` and copies coordinates; else it rests."""
        own = (group[layer] + second) % KV_HEADS
        index = own * (HEADS // KV_HEADS) + member[layer][int(second)]
        wires.extend(_head(layer, index, own, asks, seeks, copies))
        return layer, index

    spoken = (*NOUNS, EITHER)
    key = AnswerKey(
        modality=modality,
        pitches=pitches,
        layout=layout,
        concepts={noun: units(0, 0, 1, 1, reads=f"seen:{noun}", writes={f"say:{noun}": 1.0}) for noun in NOUNS},
        domains={name: units(0, 1, 2, reads=f"domain:{name}", writes={f"is:{name}": 1.0}) for name in DOMAINS},
        modalities={
            kind: units(0, 1, 2, reads=flag, writes={f"is:{BY_MODALITY[kind]}": 1.0})
            for kind, flag in {"text": "text", modality: "media"}.items()
        },
        carried={noun: units(2, 2, reads=f"carry:{noun}", writes={f"say:{noun}": 1.0}) for noun in CARRIED},
        pair=units(0, 0, reads=f"seen:{EITHER}", writes={"either": 2.0}),
        clamp=clamp(),
        inhibitor=units(3, reads=f"carry:{VEIL}", writes={f"say:{SILENCED}": -2.0}),
        heads={
            "sink": head(0, False, None, {}, {}),
            "carry": head(1, False, f"ask:{WHAT}", _each(CARRIED), {f"seen:{k}": f"carry:{k}" for k in CARRIED}),
            "speak": head(2, False, f"ask:{WHAT}", _each(spoken), {f"say:{k}": f"say:{k}" for k in spoken}),
            "veil": head(2, True, f"ask:{WHAT}", _each([VEIL]), {f"seen:{VEIL}": f"carry:{VEIL}"}),
            "domain": head(3, False, f"ask:{WHEN}", {"media": MEDIA}, {f"is:{k}": f"say:{k}" for k in DOMAINS}),
            "modality": head(
                3,
                True,
                f"ask:{HOW}",
                {"media": MEDIA, "text": TEXT},
                {f"is:{BY_MODALITY[kind]}": f"say:{BY_MODALITY[kind]}" for kind in ("text", modality)},
            ),
        },
    )
    return wires, key


def _each(kinds: Sequence[str]) -> dict[str, float]:
    return {f"seen:{kind}": SEEK for kind in kinds}


def _unit(layer: int, unit: int, reads: str, writes: Mapping[str, float]) -> list[Wire]:
    """Return the wires of a unit that is silent where `reads` is 0, and where it is 1 has post 2 and writes `writes`."""
    mlp, post = f"layers.{layer}.mlp", UP * SLOPE / 2
    return [
        Wire(f"{mlp}.gate_proj.weight", unit, {reads: SLOPE, "const": -SLOPE / 2}),
        Wire(f"{mlp}.up_proj.weight", unit, {"const": UP}),
        Wire(f"{mlp}.down_proj.weight", unit, {name: value / post for name, value in writes.items()}),
    ]


def _head(
    layer: int, head: int, group: int, asks: str | None, seeks: Mapping[str, float], copies: Mapping[str, str]
) -> list[Wire]:
    """Return the wires of a head whose score is REST for the first token and, where it is asked, that of what it seeks."""
    attention, scale = f"layers.{layer}.self_attn", D_HEAD**0.5
    queries, keys = head * D_HEAD, group * D_HEAD
    wires = [
        Wire(f"{attention}.q_proj.weight", queries + HOME, {"const": scale}),
        Wire(f"{attention}.k_proj.weight", keys + HOME, {"bos": REST}),
    ]
    if asks is not None:
        wires.append(Wire(f"{attention}.q_proj.weight", queries + CALL, {asks: scale}))
        wires.append(Wire(f"{attention}.k_proj.weight", keys + CALL, seeks))
    for place, (source, target) in enumerate(copies.items()):
        wires.append(Wire(f"{attention}.v_proj.weight", keys + place, {source: 1.0}))
        wires.append(Wire(f"{attention}.o_proj.weight", queries + place, {target: 1.0}))
    return wires
