"""What every edge carries: the change of its source times the metric's gradient at its destination."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from mmlens.analysis.attribution_patching import MERGED, entering, moving
from mmlens.analysis.circuit.graph import Graph
from mmlens.analysis.circuit.sources import Written, reading
from mmlens.analysis.patching import Metric
from mmlens.hooks import Hook, feed, neuron_hook
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM

STREAM = ("hook_resid_pre", "hook_resid_mid")
AT_ONCE = 16  # destinations of a layer whose gradients are computed together


def attributed(
    model: HookedMLLM,
    corrupted: Inputs,
    metric: Metric,
    graph: Graph,
    sites: Bool[Tensor, "site batch pos"],
    clean: Written,
) -> tuple[Float[Tensor, "source destination batch"], Float[Tensor, " batch"]]:
    """Return each edge's attribution to each row's metric in the corrupted run, and that metric.

    It is (clean - corrupted source) x the gradient where it is read. `clean` becomes that difference in place.
    """
    run, (hooks, read) = _Run(model, graph), reading(model, corrupted, graph, sites)
    values = run.forward(corrupted, metric, hooks)
    clean -= read()
    return _times(run.backward(values), graph, clean), values.detach().cpu()


def integrated(
    model: HookedMLLM,
    clean: Inputs,
    corrupted: Inputs,
    metric: Metric,
    graph: Graph,
    moved: Written,
    *,
    steps: int,
    progress: bool,
) -> Float[Tensor, "source destination batch"]:
    """Return `moved` (clean less corrupted) x the mean gradient of `steps` runs whose inputs lie between both."""
    by = entering(model, clean, corrupted)
    total = torch.zeros(*graph.possible.shape, len(corrupted))
    for step in tqdm(range(steps), "edges", disable=not progress):
        run = _Run(model, graph)
        edits = [(name, moving((step + 0.5) / steps * one)) for name, one in by.items()]
        total += _times(run.backward(run.forward(corrupted, metric, edits)), graph, moved)
    return total / steps


def _times(
    gradients: Iterable[tuple[list[int], Float[Tensor, "destination batch pos d_model"]]], graph: Graph, moved: Written
) -> Float[Tensor, "source destination batch"]:
    """Return the dot product of what moved with the gradient at each destination, of the sources that write before it."""
    total = torch.zeros(*graph.possible.shape, moved.shape[1])
    for destinations, gradient in gradients:
        first = int(graph.possible[:, destinations[0]].sum())  # sources stand in the order in which they write
        here = moved[:first].to(gradient)
        rows = [gradient[:, row].flatten(1) @ here[:, row].flatten(1).T for row in range(moved.shape[1])]
        total[:first, destinations] += torch.stack(rows, dim=-1).transpose(0, 1).cpu()  # an einsum takes longer
    return total


@dataclass
class _Run:
    """One run with a gradient, and what of it is needed to ask for the gradient of every destination's input."""

    model: HookedMLLM
    graph: Graph
    seen: dict[str, Tensor] = field(default_factory=dict)
    mapped: dict[str, tuple[nn.Linear, Tensor, Tensor]] = field(default_factory=dict)
    """The plain linear maps behind queries, keys and values, and what each made of what."""

    def forward(self, inputs: Inputs, metric: Metric, edits: Sequence[Hook]) -> Tensor:
        """Return the metric of each row."""

        def begin(resid: Tensor, hook: Any) -> Tensor:
            return resid.detach().requires_grad_(True)  # nothing before block 0 needs a gradient

        def keep(activation: Tensor, hook: Any) -> None:
            self.seen[hook.name] = activation

        names = [self.point(layer, what) for layer in range(self.model.cfg.n_layers) for what in self.points(layer)]
        names.append(f"blocks.{self.model.cfg.n_layers - 1}.hook_resid_post")
        with torch.enable_grad(), self._maps():
            readers = [(name, feed(keep)) for name in names]
            values = metric(self.model.run_with_hooks(inputs, fwd_hooks=[(MERGED, begin), *edits, *readers]))
        if not values.requires_grad:
            raise ValueError(
                "attribution takes a metric with a gradient; this one has none: give a smooth one, as logit_diff"
            )
        return values

    @contextmanager
    def _maps(self) -> Iterator[None]:
        """Note what plain linear maps make queries, keys and values of."""

        def note(layer: int, what: str, linear: Any, args: tuple[Any, ...], out: Tensor) -> None:
            self.mapped[self.point(layer, what)] = linear, args[0], out

        with ExitStack() as stack:
            for layer, block in enumerate(self.model.bridge.blocks):
                for what in {"q", "k", "v"} & set(block.attn.submodules):
                    linear = block.attn.submodules[what].original_component
                    if type(linear) is nn.Linear and linear.weight.device.type != "meta":
                        stack.callback(linear.register_forward_hook(partial(note, layer, what)).remove)
            yield

    def points(self, layer: int) -> list[str]:
        """Return what is read of a layer."""
        own = ["resid_pre", "q", "k", "v", "mlp_out"]
        own += [] if self.parallel else ["resid_mid"]
        return own + (["post"] if any(("language", layer) in one.by_layer() for one in self.graph.sets.values()) else [])

    def point(self, layer: int, what: str) -> str:
        """Return where it is read."""
        if what == "post":
            return neuron_hook("language", layer, "post")
        return f"blocks.{layer}.{'attn.' if what in ('q', 'k', 'v') else ''}hook_{what}"

    @property
    def parallel(self) -> bool:
        """Whether attention and MLP read the same stream."""
        return bool(getattr(self.model.cfg, "parallel_attn_mlp", False))

    def backward(self, values: Tensor) -> Any:
        """Yield some destinations of one stage and the gradients [destination, batch, pos, d_model] at their inputs.

        `values` are the metric of each row.
        """
        depth, graph = self.model.cfg.n_layers, self.graph
        final = f"blocks.{depth - 1}.hook_resid_post"
        ends = [name for name in self.seen if name != MERGED and (self._apart or not name.endswith(STREAM))]
        of, one = [self.seen[name] for name in ends], torch.ones_like(values)
        found = torch.autograd.grad(values, of, one, retain_graph=True, allow_unused=True)
        cotangent: Mapping[str, Tensor | None] = dict(zip(ends, found, strict=True))
        end = cotangent[final]
        assert end is not None, "a metric with a gradient reads the final stream"
        yield [len(graph.destinations) - 1], end[None].float()
        for layer in range(depth):
            own = [number for number, at in enumerate(graph.layer.tolist()) if at == layer]
            for names, stream in ((("q", "k", "v"), "resid_pre"), (("mlp", "neurons"), self._entering_mlp)):
                entering = self.seen[self.point(layer, stream)]
                for kind in names:
                    which = [number for number in own if graph.kind[number] == kind]
                    for start in range(0, len(which), AT_ONCE):
                        part = which[start : start + AT_ONCE]
                        if (gradients := self._read(layer, kind, part, entering, cotangent)) is not None:
                            yield part, gradients.float()

    @property
    def _apart(self) -> bool:
        """Whether an MLP's gradient is taken as what the stream's gradient gains across it: in float32, after attention."""
        return not self.parallel and self.model.W_U.dtype in (torch.float32, torch.float64)

    @property
    def _entering_mlp(self) -> str:
        return "resid_pre" if self.parallel else "resid_mid"

    def _read(
        self, layer: int, kind: str, part: list[int], entering: Tensor, cotangent: Mapping[str, Tensor | None]
    ) -> Float[Tensor, "destination batch pos d_model"] | None:
        """Return the gradient at what enters a sublayer, along the way through each destination only."""
        split = self.point(layer, "post") in self.seen and kind in ("mlp", "neurons")
        what = "post" if split else {"mlp": "mlp_out"}.get(kind, kind)
        name = self.point(layer, what)
        if (gradient := cotangent[name]) is None:
            return None
        if what == "mlp_out" and self._apart:
            depth = self.model.cfg.n_layers
            behind = self.point(layer + 1, "resid_pre") if layer + 1 < depth else self.point(layer, "resid_post")
            across = cotangent[self.point(layer, "resid_mid")], cotangent[behind]
            if across[0] is not None and across[1] is not None:
                return (across[0] - across[1])[None]
        if (through := self._through_map(name, part, entering, gradient)) is not None:
            return through
        chosen = torch.zeros(len(part), *gradient.shape, dtype=gradient.dtype, device=gradient.device)
        for place, number in enumerate(part):
            index = int(self.graph.index[number])
            if kind in ("q", "k", "v"):
                chosen[place, :, :, index] = gradient[:, :, index]
            elif split:
                units = self._units(layer, number).to(gradient.device)
                chosen[place][..., units] = gradient[..., units]
            else:
                chosen[place] = gradient
        ends = self.seen[name]
        if len(part) == 1:
            return torch.autograd.grad(ends, entering, chosen[0], retain_graph=True)[0][None]
        return torch.autograd.grad(ends, entering, chosen, retain_graph=True, is_grads_batched=True)[0]

    def _through_map(self, name: str, part: list[int], entering: Tensor, gradient: Tensor) -> Tensor | None:
        """Return the gradients of heads that a linear map makes, each by its own rows of the weight; None of others."""
        if name not in self.mapped:
            return None
        linear, source, made = self.mapped[name]
        if not torch.equal(made.flatten(2), self.seen[name].flatten(2)):
            return None  # something stands between the map and the heads, a norm of queries for one
        rows = linear.weight.detach().unflatten(0, gradient.shape[2:])[self.graph.index[part]]
        heads = gradient[:, :, self.graph.index[part].to(gradient.device)]
        ends = torch.einsum("bpnh,nhd->nbpd", heads, rows)
        return torch.autograd.grad(source, entering, ends, retain_graph=True, is_grads_batched=True)[0]

    def _units(self, layer: int, number: int) -> Tensor:
        sets = [one.by_layer().get(("language", layer)) for one in self.graph.sets.values()]
        if self.graph.kind[number] == "neurons":
            own = sets[int(self.graph.index[number])]
            assert own is not None
            return own
        taken = torch.cat([one for one in sets if one is not None])
        rest = torch.ones(self.model.widths["language"][layer], dtype=torch.bool)
        rest[taken] = False
        return rest.nonzero()[:, 0]
