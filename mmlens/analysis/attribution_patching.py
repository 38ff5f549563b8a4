"""Attribution patching: what patching every node would do, from one gradient; and gradients integrated along a path."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from mmlens.analysis.nodes import Activation, Nodes, lined_up, nodes, values_at
from mmlens.analysis.patching import Metric, Patching
from mmlens.hooks import Hook, feed
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.neurons import Neurons
from mmlens.results import Provenance

MERGED = "blocks.0.hook_resid_pre"  # where images and sounds are in the stream; `hook_embed` has their placeholders


def attribution_patching(
    model: HookedMLLM,
    *,
    clean: Inputs,
    corrupted: Inputs,
    metric: Metric,
    activation: Activation = "resid_pre",
    sites: Mapping[str, Bool[Tensor, "batch pos"]] | None = None,
    positions: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    units: Sequence[int] | Neurons | None = None,
    layers: Sequence[int] | None = None,
    steps: int | None = None,
    path: Literal["input", "node"] = "input",
    progress: bool = False,
) -> Patching:
    """Return what `activation_patching` would, to first order: (clean - corrupted activation) x the metric's gradient.

    Arguments are those of `activation_patching`; every head or unit costs no more than all together (all neurons of a model:
    `activation="post", units=range(d_mlp)`). The gradient is taken in the corrupted run, through the merged stream; with
    `steps`, it is the mean over as many runs between the corrupted and the clean one. `path="input"` moves what enters block
    0 (and DeepStack's features), all layers at once; `path="node"` moves the chosen nodes of a layer, one layer after the
    other: their attributions then add up to the exact effect of patching them together, as `steps` grow.

    Costs three forwards and one backward; with `steps`, two forwards and a forward and backward per step (and per layer
    along nodes). Raises ValueError where the inputs do not line up, and for a metric without a gradient. Source: Nanda 2023
    (attribution patching); Sundararajan et al. 2017 and Hanna et al. 2024 (integrated gradients, along the input).
    """
    lined_up(clean, corrupted)
    if steps is not None and steps < 1:
        raise ValueError(
            f"gradients are integrated over 1 step or more, got {steps}: leave `steps` out for the gradient alone"
        )
    chosen = nodes(model, corrupted, activation, sites=sites, positions=positions, heads=heads, units=units)
    own = list(range(model.cfg.n_layers)) if layers is None else [int(layer) for layer in layers]
    wanted = chosen.everywhere(corrupted)
    moved, best, worst = _difference(model, clean, corrupted, chosen, own, wanted, metric)
    found = _Attributed(chosen, wanted, {layer: moved[chosen.name(layer)] for layer in own})
    runs: list[tuple[list[int], list[Hook]]] = [(own, [])]
    if steps is not None:
        shares = [(step + 0.5) / steps for step in range(steps)]
        if path == "input":
            between = entering(model, clean, corrupted)
            runs = [(own, [(name, moving(share * by)) for name, by in between.items()]) for share in shares]
        else:
            runs = [([layer], [(found.point(layer), found.moving(layer, share))]) for layer in own for share in shares]
    for which, edits in tqdm(runs, "attributing", disable=not progress):
        _gradients(model, corrupted, metric, edits, [(found.point(layer), found.reader(layer)) for layer in which])
    parts = (len(chosen.parts),) if chosen.parts else ()
    change = torch.stack([found.total[layer] for layer in own]) / (steps or 1)
    return Patching(
        activation=activation,
        windows=tuple((layer, layer + 1) for layer in own),
        sites=chosen.sites,
        parts=chosen.parts,
        metric=(worst + change).view(len(own), len(chosen.masks), *parts, len(clean)),
        clean_metric=best,
        corrupted_metric=worst,
        provenance=Provenance.record(
            model,
            (clean.digest(), corrupted.digest()),
            analysis="attribution_patching",
            activation=activation,
            steps=steps,
            path=path if steps else None,
        ),
    )


@dataclass
class _Attributed:
    """What has been attributed so far: `total[layer]` [site, part, batch], from the `moved` activations of each layer."""

    chosen: Nodes
    wanted: Bool[Tensor, "batch pos"]
    moved: dict[int, Float[Tensor, "place ..."]]
    total: dict[int, Float[Tensor, "site part batch"]] = field(init=False)

    def __post_init__(self) -> None:
        shape = (len(self.chosen.masks), len(self.chosen.parts) or 1, len(self.wanted))
        self.total = {layer: torch.zeros(shape, dtype=_wide(moved)) for layer, moved in self.moved.items()}

    def point(self, layer: int) -> str:
        """Return where a layer's gradient is whole: of the stream between attention and MLP, what attention adds to it."""
        return self.chosen.name(layer).replace("hook_resid_mid", "hook_attn_out")

    def moving(self, layer: int, share: float) -> Any:
        """Return the hook function that moves a layer's nodes a `share` of the way to the clean run."""

        def move(activation: Tensor, hook: Any) -> Tensor:
            edited = activation.clone()
            there = self.chosen.at(activation, self.wanted) + (share * self.moved[layer]).to(activation)
            self.chosen.put(edited, self.wanted, there, self.chosen.together(layer))
            return edited

        return move

    def reader(self, layer: int) -> Any:
        """Return the sink that waits for the gradient of a layer's activation and adds what it attributes."""

        def sink(activation: Tensor, hook: Any) -> None:
            activation.register_hook(partial(self._add, layer))

        return feed(sink)

    def _add(self, layer: int, gradient: Tensor) -> None:
        moved, chosen = self.moved[layer], self.chosen
        product = chosen.at(gradient, self.wanted).to(moved) * moved
        product = chosen.choose(product, chosen.together(layer))
        product = product.flatten(2).sum(2) if product.ndim > 2 else product  # by head or by unit
        product = product if chosen.parts else product.sum(1, keepdim=True)
        rows = self.wanted.nonzero()[:, 0].cpu()
        product = product.to("cpu", self.total[layer].dtype)
        for site, mask in enumerate(chosen.masks):
            here = mask[self.wanted].cpu()
            self.total[layer][site].index_add_(1, rows[here], product[here].T)


def _difference(
    model: HookedMLLM,
    clean: Inputs,
    corrupted: Inputs,
    chosen: Nodes,
    layers: Sequence[int],
    wanted: Bool[Tensor, "batch pos"],
    metric: Metric,
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Return clean less corrupted activations by name, at the wanted places, and the two runs' metrics."""
    logits, there = values_at(model, clean, chosen, layers, wanted)
    best = metric(logits).detach().cpu()
    logits, here = values_at(model, corrupted, chosen, layers, wanted)
    moved = {chosen.name(layer): there[layer].to(_wide(there[layer])) - here[layer] for layer in layers}
    return moved, best, metric(logits).detach().cpu()


@torch.no_grad()
def entering(model: HookedMLLM, clean: Inputs, corrupted: Inputs) -> dict[str, Tensor]:
    """Return clean less corrupted of all that enters the language model: the merged stream, and DeepStack's features."""
    names = [MERGED, *(name for name in model.hook_names if re.fullmatch(r"deepstack\.\d+\.hook_out", name))]
    deep = [name for name in names if name == MERGED or clean.mask("image", "video").any()]
    (_, there), (_, here) = (model.run_with_cache(inputs, deep) for inputs in (clean, corrupted))
    return {name: there[name] - here[name] for name in deep}


def moving(by: Tensor) -> Any:
    """Return the hook function that moves an activation by a given change."""
    return lambda activation, hook: activation + by.to(activation)


def _gradients(model: HookedMLLM, inputs: Inputs, metric: Metric, edits: Sequence[Hook], readers: Sequence[Hook]) -> None:
    """Run forward with the edits and backward from the metric, so that the readers get their gradients."""
    start = torch.empty(0)

    def begin(resid: Tensor, hook: Any) -> Tensor:
        nonlocal start
        start = resid.detach().requires_grad_(True)  # nothing before block 0 needs a gradient
        return start

    with torch.enable_grad():
        values = metric(model.run_with_hooks(inputs, fwd_hooks=[(MERGED, begin), *edits, *readers]))
        if not values.requires_grad:
            raise ValueError(
                "attribution takes a metric with a gradient; this one has none: give a smooth one, as logit_diff"
            )
        values.sum().backward(inputs=[start])


def _wide(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)
