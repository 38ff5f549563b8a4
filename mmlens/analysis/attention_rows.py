"""Where chosen positions look: their attention over all keys, layer by layer and head by head."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmlens.attention import ROWS, rows_of
from mmlens.grid import Grid, Place, Tiles
from mmlens.hooks import feed
from mmlens.inputs import MODALITIES, Inputs
from mmlens.model import HookedMLLM
from mmlens.results import Provenance, Result


@dataclass(frozen=True, kw_only=True, repr=False)
class AttentionRows(Result):
    """The attention of chosen queries: `pattern` sums to 1 over keys.

    `layers` and `heads` say which these are, `queries` at which positions: in their order, and -1 (where the pattern is
    NaN) where a row of the batch has fewer than others. `modality` (an index in MODALITIES), `medium` and `grids` are those
    of the inputs, None and empty for a tower's attention, whose keys are not positions of the stream.
    """

    pattern: Float[Tensor, "layer batch head query key"]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    queries: Int[Tensor, "batch query"]
    modality: Int[Tensor, "batch key"] | None
    medium: Int[Tensor, "batch key"] | None
    grids: tuple[tuple[Place, ...], ...]

    def mass(self, *groups: str | Bool[Tensor, "*layer batch key"]) -> Float[Tensor, "layer batch head query"]:
        """Return how much of each query's attention lies on keys of any of `groups`: modalities ("image") and masks.

        A mask may differ by layer. Raises KeyError for another name, and ValueError for a mask of another shape.
        """
        layers, batch, *_, keys = self.pattern.shape
        where = torch.zeros(layers, batch, keys, dtype=torch.bool)
        for group in groups:
            mask = self._of(group) if isinstance(group, str) else group.cpu()
            if mask.shape not in ((batch, keys), (layers, batch, keys)):
                raise ValueError(
                    f"a group of keys is a mask [{batch}, {keys}] (or one for each of the {layers} layers), got "
                    f"{list(mask.shape)}: make it from the inputs of this run, for instance inputs.mask('image:0')"
                )
            where |= mask
        return torch.einsum("lbhqk,lbk->lbhq", self.pattern, where.float())

    def on_grid(self, row: int = 0, medium: int = 0) -> list[tuple[Grid, Float[Tensor, "layer head query row column"]]]:
        """Return the attention of a `row`'s queries to one picture or video, laid out on its grid (each tile of it).

        Numbers are as in `pattern`: what all positions of the medium get is `mass`. Positions that hold no piece of the
        picture (ends of lines) are left out. Raises ValueError where the medium has no grid.
        """
        places = self.grids[row] if self.grids else ()
        place = places[medium] if 0 <= medium < len(places) else None
        if not isinstance(place, (Grid, Tiles)) or self.medium is None:
            raise ValueError(
                f"a map needs a picture whose positions have a place on it; row {row} has {len(places)} media here, number "
                f"{medium} is {type(place).__name__}: take `mass` of a mask instead"
            )
        values = self.pattern[:, row][..., self.medium[row] == medium]
        return place.painted(values[:, :, self.queries[row] >= 0])

    def _of(self, group: str) -> Bool[Tensor, "batch key"]:
        if self.modality is None or group not in MODALITIES:
            raise KeyError(
                f"a group of keys is a mask, or one of {', '.join(MODALITIES)} in the language model; got {group!r}: for "
                "one medium, say, give inputs.mask('image:0')"
            )
        return self.modality == MODALITIES.index(group)


@torch.no_grad()
def attention_rows(
    model: HookedMLLM,
    inputs: Inputs,
    *,
    queries: Bool[Tensor, "batch pos"] | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    module: str = "language",
) -> AttentionRows:
    """Return the attention of the `queries` positions (default: the last of each row) over all keys, in float32.

    It is computed from the rotated queries and keys beside SDPA, which goes on: the model's own numbers stay what they are,
    and memory is that of the rows (but where scores have a soft cap, for which a model computes whole patterns in any run).
    `layers` (they come in their order) and `heads` default to all. In a tower (`module="vision"`), `queries` is a mask over
    its own positions [entry, pos] and must be given. Raises ValueError for queries that are not of this run, or none;
    UnknownHook for a layer and IndexError for a head that is not there.
    """
    if queries is None and module != "language":
        raise ValueError(f"{module} has no last position: give queries, a mask [entry, pos] over its own positions")
    positions = positions_of(inputs.last() if queries is None else queries, inputs if module == "language" else None)
    kept: list[Tensor] = []

    def keep(layer: int, pattern: Tensor) -> None:
        own = range(pattern.shape[1]) if heads is None else list(heads)
        if beyond := [head for head in own if not 0 <= head < pattern.shape[1]]:
            raise IndexError(f"{module} has the heads 0 to {pattern.shape[1] - 1} in layer {layer}, got {beyond[0]}")
        chosen = pattern if heads is None else pattern[:, own]
        kept.append(chosen.cpu().masked_fill((positions < 0)[:, None, :, None], torch.nan))

    chosen = read_rows(model, inputs, positions, keep, layers=layers, module=module)
    stream = module == "language"
    return AttentionRows(
        pattern=torch.stack(kept),
        layers=chosen,
        heads=tuple(range(kept[0].shape[1]) if heads is None else map(int, heads)),
        queries=positions,
        modality=inputs.modality.cpu() if stream else None,
        medium=inputs.medium.cpu() if stream else None,
        grids=inputs.grids if stream else (),
        provenance=Provenance.record(model, (inputs.digest(),), analysis="attention_rows", module=module),
    )


def read_rows(
    model: HookedMLLM,
    inputs: Inputs,
    positions: Int[Tensor, "batch query"],
    sink: Callable[[int, Float[Tensor, "batch head query key"]], None],
    *,
    layers: Sequence[int] | None = None,
    module: str = "language",
) -> tuple[int, ...]:
    """Return the layers (default: all of a module) whose rows of attention, in float32, `sink` got in one run, in order.

    `positions` are as `positions_of` makes them. Raises ValueError where nothing ran.
    """
    prefix = "blocks" if module == "language" else f"{module}.blocks"
    depth = sum(name.startswith(f"{prefix}.") and name.endswith(f".attn.{ROWS}") for name in model.hook_names)
    chosen = tuple(range(depth)) if layers is None else tuple(sorted(set(map(int, layers))))
    points = {f"{prefix}.{layer}.attn.{ROWS}": layer for layer in chosen}
    ran = False

    def read(pattern: Tensor, hook: Any) -> None:
        nonlocal ran
        ran = True
        sink(points[hook.name], pattern.float())

    with rows_of(positions):
        model.next_logits(inputs, fwd_hooks=[(name, feed(read)) for name in points])
    if not ran:
        raise ValueError(
            f"no layer of {module!r} has run: give a module that has attention, of {', '.join(model.widths)}, and inputs "
            "with something for it to read"
        )
    return chosen


def positions_of(where: Bool[Tensor, "batch pos"], inputs: Inputs | None = None) -> Int[Tensor, "batch query"]:
    """Return the positions of a mask, row by row, -1 behind those of rows that have fewer.

    Raises ValueError for a mask that is not of these `inputs`, where they are given, and for one of no position.
    """
    if inputs is not None and where.shape != inputs.tokens.shape:
        raise ValueError(
            f"queries are a mask {list(inputs.tokens.shape)} of these inputs' positions, got {list(where.shape)}: make it "
            "from them, for instance inputs.last()"
        )
    most = int(where.sum(-1).max())
    if not most:
        raise ValueError("a row of attention needs a query, the mask has none: choose at least one position")
    order = (~where).to(torch.uint8).argsort(dim=-1, stable=True)[:, :most]
    return order.where(where.gather(1, order), -1).cpu()  # where looking at them waits for no GPU
