"""What a residual stream is a sum of: what entered block 0, and what every head, neuron and sublayer added to it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmlens.cache import deepstack_in_stream, gain
from mmlens.hooks import Hook, feed, neuron_hook
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.results import Storable
from mmlens.weights import output_rows, weight_of

At = Literal["pre", "mid", "post"]
LABELS = {
    "embed": "embed",
    "pos_embed": "pos_embed",
    "attn": "{layer}_attn_out",
    "head": "L{layer}H{index}",
    "attn_rest": "{layer}_attn_rest",
    "mlp": "{layer}_mlp_out",
    "neuron": "L{layer}.u{index}",
    "mlp_rest": "{layer}_mlp_rest",
    "deepstack": "{layer}_deepstack",
    "block": "{layer}_block",
}


@dataclass(frozen=True, eq=False)
class Components(Storable):
    """The parts of a stream, in the order in which they enter it: parallel `kind`, `layer` and `index` (-1: none).

    Kinds, and how they are shown: `embed` (what is merged into the stream: token embeddings, projected media),
    `pos_embed` where learned positions are added to it; of layer 3, the whole of attention (`3_attn_out`) or each head
    (`L3H5`) and the output's bias where it has one (`3_attn_rest`); the whole MLP (`3_mlp_out`) or chosen neurons
    (`L3.u120`) and the rest of it, its bias included (`3_mlp_rest`); what DeepStack adds behind it (`3_deepstack`).
    """

    kind: tuple[str, ...]
    layer: Int[Tensor, " component"]
    index: Int[Tensor, " component"]

    def __len__(self) -> int:
        return len(self.kind)

    def __repr__(self) -> str:
        return f"Components({len(self)}: {', '.join(self.labels()[:6])}{', ...' if len(self) > 6 else ''})"

    def labels(self) -> list[str]:
        """Return how each component is shown."""
        each = zip(self.kind, self.layer.tolist(), self.index.tolist(), strict=True)
        return [LABELS[kind].format(layer=layer, index=index) for kind, layer, index in each]

    def find(self, label: str) -> int:
        """Return which component is shown as `label`. Raises KeyError where none is."""
        labels = self.labels()
        if label not in labels:
            raise KeyError(f"components are {', '.join(labels[:8])}, ... ({len(labels)} of them), got {label!r}")
        return labels.index(label)


@dataclass(frozen=True)
class Decomposed:
    """A stream's parts at some places, and the stream itself; in the basis of the model or as dot products."""

    components: Components
    parts: Float[Tensor, "component place out"]
    stream: Float[Tensor, "place out"]


@torch.no_grad()
def decompose(
    model: HookedMLLM,
    inputs: Inputs,
    where: Bool[Tensor, "batch pos"],
    *,
    layer: int | None = None,
    at: At = "pre",
    heads: bool = True,
    units: Mapping[int, Int[Tensor, " unit"]] | None = None,
    onto: Float[Tensor, "group d_model direction"] | None = None,
    fwd_hooks: Sequence[Hook] = (),
    output: Callable[[Float[Tensor, "batch pos d_vocab"]], None] | None = None,
) -> Decomposed:
    """Return the components of the stream at the `where` positions, in one run, float32 and on the CPU.

    `onto` are directions of all places (one group) or of each place: only dot products are kept then, and no head's or
    neuron's vector is ever made. One layer's activations at `where` are held at a time; `output` gets the run's logits.
    Raises ValueError for a layer or a point of it that the model does not have, and for neurons that write later.
    """
    depth, units = model.cfg.n_layers, dict(units or {})
    if (layer is None and at != "pre") or (layer is not None and not 0 <= layer < depth):
        raise ValueError(f"a stream is at a layer from 0 to {depth - 1}, or the final one (None), got {layer} ({at!r})")
    if at == "mid" and getattr(model.cfg, "parallel_attn_mlp", False):
        raise ValueError(f"{model.name} has attention and MLP side by side, so no stream between them: take pre or post")
    whole = depth if layer is None else layer + (at == "post")  # the blocks all of whose parts are in it
    if late := sorted(set(units) - set(range(whole))):
        raise ValueError(f"neurons write into the stream behind their layer; those of layer {late[0]} are not in it yet")
    reader = Reader(model, inputs, where, heads, units, onto)
    hooks = reader.through(whole, at)
    hooks += reader.attention(whole) if at == "mid" else []
    end = f"blocks.{depth - 1}.hook_resid_post" if layer is None else f"blocks.{layer}.hook_resid_{at}"
    logits = model.run_with_hooks(inputs, fwd_hooks=[*hooks, reader.keep(end), *fwd_hooks])
    if output is not None:
        output(logits)
    if at == "mid":
        reader.attend(whole)
    stream = _onto(reader.seen[end], onto).cpu()
    return Decomposed(components=reader.components(), parts=torch.cat([*reader.parts()]), stream=stream)


@dataclass
class Reader:
    """What is read in one run: each layer's activations at `where` until its block ends, then its parts only.

    No gradient passes through what is read, so the run may have one.
    """

    model: HookedMLLM
    inputs: Inputs
    where: Bool[Tensor, "batch pos"]
    heads: bool
    units: dict[int, Int[Tensor, " unit"]]
    onto: Float[Tensor, "group d_model direction"] | None
    seen: dict[str, Tensor] = field(default_factory=dict)
    found: list[tuple[str, int, Tensor, Tensor]] = field(default_factory=list)

    def keep(self, name: str) -> Hook:
        """Return the hook that keeps an activation's chosen places."""
        return name, feed(lambda value, hook: self.seen.__setitem__(name, value.detach().float()), where=self.where)

    def through(self, whole: int, at: At = "pre") -> list[Hook]:
        """Return the hooks that read what enters, and all of the first `whole` blocks."""
        return [*self.entering(), *(hook for number in range(whole) for hook in self.block(number, whole, at))]

    def components(self) -> Components:
        """Return what the run was found to be made of."""
        return Components(
            kind=tuple(kind for kind, _, indices, _ in self.found for _ in indices),
            layer=torch.cat([torch.full_like(indices, number) for _, number, indices, _ in self.found]),
            index=torch.cat([indices for _, _, indices, _ in self.found]),
        )

    def parts(self) -> Iterator[Float[Tensor, "component place out"]]:
        """Yield what those components are, some at a time, which the reader then forgets."""
        while self.found:
            yield self.found.pop(0)[-1]

    def entering(self) -> list[Hook]:
        """Return the hooks that read what enters block 0, learned positions apart."""

        def sink(stream: Tensor, hook: Any) -> None:
            stream, positions = stream.detach().float(), self.seen.pop("hook_pos_embed", None)
            self._put("embed", -1, _onto(stream if positions is None else stream - positions, self.onto)[None])
            if positions is not None:
                self._put("pos_embed", -1, _onto(positions, self.onto)[None])

        learned = [self.keep("hook_pos_embed")] if "hook_pos_embed" in self.model.hook_names else []
        return [*learned, ("blocks.0.hook_resid_pre", feed(sink, where=self.where))]

    def attention(self, number: int) -> list[Hook]:
        """Return the hooks that keep what a layer's attention is taken apart by."""
        if not self.heads:
            return [self.keep(f"blocks.{number}.hook_attn_out")]
        return [self.keep(f"blocks.{number}.attn.hook_z"), *self.scale(number, "ln1_post")]

    def block(self, number: int, whole: int, at: At) -> list[Hook]:
        """Return the hooks that read a whole block, and what DeepStack adds behind it unless the stream ends before that."""
        hooks = [*self.attention(number), self.keep(f"blocks.{number}.hook_mlp_out")]
        if number in self.units:
            hooks += [self.keep(neuron_hook("language", number, "post")), *self.scale(number, "ln2_post")]
        deep = f"deepstack.{number}.hook_out"
        shows = bool(self.inputs.mask("image", "video").any()) and (at != "post" or number < whole - 1)

        def place(features: Tensor, hook: Any) -> None:
            added = deepstack_in_stream(features.detach(), self.inputs)
            self.seen[deep] = added[self.where.to(added.device)].float()

        def sink(stream: Tensor, hook: Any) -> None:
            self.attend(number)
            self.compute(number)
            if deep in self.seen:
                self._put("deepstack", number, _onto(self.seen.pop(deep), self.onto)[None])

        hooks += [(deep, feed(place))] if shows and deep in self.model.hook_names else []
        return [*hooks, (f"blocks.{number}.hook_resid_post", feed(sink))]

    @torch.no_grad()
    def attend(self, number: int) -> None:
        """Note what a layer's attention wrote, from what was kept of it."""
        if not self.heads:
            self._put("attn", number, _onto(self.seen.pop(f"blocks.{number}.hook_attn_out"), self.onto)[None])
            return
        z, linear = self.seen.pop(f"blocks.{number}.attn.hook_z"), self.model.bridge.blocks[number].attn.submodules["o"]
        factor, scale = self._way(number, "ln1_post")
        rows = output_rows(linear).unflatten(0, z.shape[1:])
        self._put("head", number, _written(z, rows, factor, self.onto) / scale, torch.arange(z.shape[1]))
        if getattr(linear.original_component, "bias", None) is not None:
            bias = weight_of(linear, "bias").float().to(z.device) * factor
            self._put("attn_rest", number, (_onto(bias.expand(len(z), -1), self.onto) / scale)[None])

    @torch.no_grad()
    def compute(self, number: int) -> None:
        """Note what a layer's MLP wrote, from what was kept of it."""
        rest = _onto(self.seen.pop(f"blocks.{number}.hook_mlp_out"), self.onto)[None]
        if number not in self.units:
            self._put("mlp", number, rest)
            return
        units = self.units[number].to(rest.device)
        post = self.seen.pop(neuron_hook("language", number, "post"))[:, units, None]
        factor, scale = self._way(number, "ln2_post")
        neurons = _written(post, self.model.W_out(number)[units, None], factor, self.onto) / scale
        self._put("neuron", number, neurons, units)
        self._put("mlp_rest", number, rest - neurons.sum(0, keepdim=True))

    def scale(self, number: int, norm: str) -> list[Hook]:
        """Return the hook that keeps the scale of a norm between a sublayer and the stream, where one stands there."""
        stands = norm in self.model.bridge.blocks[number].submodules
        return [self.keep(f"blocks.{number}.{norm}.hook_scale")] if stands else []

    def _way(self, number: int, norm: str) -> tuple[Any, Any]:
        """Return what a sublayer's output is multiplied and divided by on its way into the stream: 1 where no norm is."""
        scale = self.seen.pop(f"blocks.{number}.{norm}.hook_scale", None)
        return (1.0, 1.0) if scale is None else (gain(getattr(self.model.bridge.blocks[number], norm)).float(), scale)

    def _put(self, kind: str, number: int, parts: Tensor, indices: Tensor | None = None) -> None:
        self.found.append((kind, number, torch.tensor([-1]) if indices is None else indices.cpu(), parts.cpu()))


def _onto(
    vectors: Float[Tensor, "place d_model"], onto: Float[Tensor, "group d_model direction"] | None
) -> Float[Tensor, "place out"]:
    return vectors if onto is None else torch.einsum("nm,nmk->nk", vectors, onto.to(vectors))


def _written(
    values: Float[Tensor, "place part unit"],
    rows: Float[Tensor, "part unit d_model"],
    factor: Any,
    onto: Float[Tensor, "group d_model direction"] | None,
) -> Float[Tensor, "part place out"]:
    """Return what each part (a head, a neuron) writes: its values through its rows of the output weights."""
    rows = rows.to(values) * factor
    matrix = rows[None] if onto is None else torch.einsum("pum,gmk->gpuk", rows, onto.to(rows))
    return torch.einsum("npu,npuk->pnk", values, matrix)
