"""The residual stream of any position as the sum of what every component wrote into it."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from mmlens.analysis.components import At, Components, decompose
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.neurons import Neurons
from mmlens.results import Provenance, Result


@dataclass(frozen=True, kw_only=True, repr=False)
class Residual(Result):
    """What each component wrote into the stream at each place, and the stream: the parts add up to it.

    Places are the `where` positions, row by row. `out` is `d_model`, or one for each direction that was asked for.
    """

    components: Components
    parts: Float[Tensor, "component place out"]
    stream: Float[Tensor, "place out"]
    where: Bool[Tensor, "batch pos"]

    def part(self, label: str) -> Float[Tensor, "place out"]:
        """Return what one component wrote: `residual.part("L3H5")`. Raises KeyError where there is none."""
        return self.parts[self.components.find(label)]


def residual(
    model: HookedMLLM,
    inputs: Inputs,
    *,
    where: Bool[Tensor, "batch pos"] | None = None,
    layer: int | None = None,
    at: At = "pre",
    heads: bool = True,
    neurons: Neurons | None = None,
    directions: Float[Tensor, "d_model direction"] | None = None,
) -> Residual:
    """Return the stream at the `where` positions (default: each row's last) as a sum of its components, see `Components`.

    It is the stream that enters block `layer` (`at="mid"`: behind its attention, `"post"`: behind its MLP), None the
    final one, before the last norm. `embed` holds what was merged into the stream, images and sounds included, so that
    parts add up at every position (in float32, to 1e-4). Where a norm stands between a sublayer and the stream, parts enter
    through it at the scale it had in this run. `heads=False` takes attention whole; `neurons` are taken out of their MLPs.

    All vectors are kept, [component, place, d_model]: with `where=inputs.mask("all")` choose `heads=False`, or give
    `directions`, and only dot products with them are made. Raises ValueError for neurons of a tower, and for neurons of a
    layer that has not written yet.
    """
    if neurons is not None and set(neurons.module) - {"language"}:
        raise ValueError(f"neurons are taken out of the language model's MLPs, got neurons of {sorted(set(neurons.module))}")
    where = inputs.last() if where is None else where
    found = decompose(
        model,
        inputs,
        where,
        layer=layer,
        at=at,
        heads=heads,
        units=None if neurons is None else {number: units for (_, number), units in neurons.by_layer().items()},
        onto=None if directions is None else directions[None],
    )
    return Residual(
        components=found.components,
        parts=found.parts,
        stream=found.stream,
        where=where.cpu(),
        provenance=Provenance.record(model, (inputs.digest(),), analysis="residual", layer=layer, at=at, heads=heads),
    )
