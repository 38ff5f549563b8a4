"""Cached activations: TransformerLens' ActivationCache, right at image and audio positions too."""

import copy
from contextlib import AbstractContextManager
from typing import Any, Literal, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import ActivationCache as TransformerLensCache
from transformer_lens.utilities.slice import Slice

from mmlens.hooks import module_of
from mmlens.inputs import Inputs
from mmlens.weights import readable, weight_of


class ActivationCache(TransformerLensCache):
    """Activations by name, as TransformerLens has them, and the `inputs` that they came from.

    TransformerLens' sums start from the token embeddings, before image features are merged in; here they start from the
    merged stream (`blocks.0.hook_resid_pre`), so that components add up at every position, and `apply_ln` includes the
    norm's gain, so that they add up to logits (before a soft cap, and less `model.b_U`) without folding weights. Where a
    norm stands between a sublayer and the stream, heads and neurons enter through it, at the scale it had in this run. In a
    block whose attention and MLP stand side by side (GPT-J), both read what enters it, and `mlp_input` changes nothing.
    Tower entries have one row per image.
    """

    def __init__(self, activations: dict[str, Tensor], bridge: Any, inputs: Inputs, canonical: dict[str, str]) -> None:
        super().__init__(activations, bridge)
        self.inputs = inputs
        self._canonical = canonical

    def __getitem__(self, key: Any) -> Tensor:
        """Return an activation by any of its names, or by TransformerLens' shorthand: `cache["resid_post", -1]`."""
        if isinstance(key, str) and key not in self.cache_dict and key in self._canonical:
            key = self._canonical[key]
        try:
            return super().__getitem__(key)
        except KeyError as error:
            shown = ", ".join(list(self.cache_dict)[:4])
            hint = "; patterns and scores are cached where they are named, as '*.hook_pattern'"
            raise KeyError(
                f"{key!r} was not cached; cached are {len(self)} activations: {shown}, ..."
                + (hint if any(word in str(key) for word in ("pattern", "scores")) else "")
            ) from error

    def __repr__(self) -> str:
        return f"ActivationCache({len(self)} activations of {self.inputs!r})"

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: Literal["all", "mlp", "attn"] = "all",
        apply_ln: bool = False,
        pos_slice: Any = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Any:
        """Return the stream as merged embedding + attention + MLP outputs; see TransformerLens for the arguments.

        The component labelled "embed" is the stream that enters block 0: text embeddings and projected images. What a model
        adds between its blocks (DeepStack's features, behind block 0) is a component of its own, "0_deepstack".
        """
        where: dict[str, Any] = dict(mlp_input=mlp_input and not self._side_by_side, pos_slice=pos_slice)
        stack: Tensor
        labels: list[str]
        stack, labels = TransformerLensCache.decompose_resid(  # pyright: ignore[reportAssignmentType] (with labels, a pair)
            self._from_merged_stream(), layer, mode=mode, incl_embeds=incl_embeds, return_labels=True, **where
        )
        for number, added in self._added_between(layer, pos_slice).items() if mode == "all" else ():
            behind = labels.index(f"{number}_mlp_out") + 1
            stack = torch.cat([stack[:behind], added[None], stack[behind:]])
            labels.insert(behind, f"{number}_deepstack")
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, layer, **where)
        return (stack, labels) if return_labels else stack

    def _added_between(self, layer: int | None, pos_slice: Any = None) -> dict[int, Tensor]:
        """Return what is added to the stream behind each block before `layer`, beside what the block itself wrote."""
        levels = [number for number in range(self.model.cfg.n_layers) if f"deepstack.{number}.hook_out" in self._canonical]
        if layer not in (None, -1):
            levels = levels[:layer]
        added: dict[int, Tensor] = {}
        for number in levels if self.inputs.mask("image", "video").any() else ():
            whole = deepstack_in_stream(self[f"deepstack.{number}.hook_out"], self.inputs)
            positions = pos_slice if isinstance(pos_slice, Slice) else Slice(pos_slice)
            added[number] = positions.apply(whole if self.has_batch_dim else whole[0], dim=-2)
        return added

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: Any = None,
        return_labels: bool = False,
        project_output_onto: Tensor | None = None,
    ) -> Any:
        """Return the stream as heads + neurons (or MLPs) + merged embedding + biases; see TransformerLens.

        What a model adds between its blocks comes last, labelled "0_deepstack" and so on. Raises NotImplementedError for
        `apply_ln` together with `project_output_onto`, which TransformerLens fuses without the norm's gain: project the
        returned stack instead.
        """
        if apply_ln and project_output_onto is not None:
            self._refuse("project_output_onto together with apply_ln", "get_full_resid_decomposition(apply_ln=True) @ W_U")
        where: dict[str, Any] = dict(mlp_input=mlp_input and not self._side_by_side, pos_slice=pos_slice)
        how: dict[str, Any] = dict(expand_neurons=expand_neurons, apply_ln=apply_ln, project_output_onto=project_output_onto)
        with self._readable("attn", "mlp", "unembed"):
            stack, labels = TransformerLensCache.get_full_resid_decomposition(
                self._from_merged_stream(), layer, return_labels=True, **where, **how
            )
        for number, added in self._added_between(layer, pos_slice).items():
            part = self.apply_ln_to_stack(added[None], layer, **where) if apply_ln else added[None]
            part = part if project_output_onto is None else part @ project_output_onto
            stack, labels = torch.cat([stack, part]), [*labels, f"{number}_deepstack"]
        return (stack, labels) if return_labels else stack

    def stack_neuron_results(self, *args: Any, **kwargs: Any) -> Any:
        """Return every neuron's contribution to the stream; see TransformerLens.

        Raises NotImplementedError for `apply_ln` together with `project_output_onto`, as above.
        """
        if kwargs.get("apply_ln") and kwargs.get("project_output_onto") is not None:
            self._refuse("project_output_onto together with apply_ln", "stack_neuron_results(apply_ln=True) @ W_U")
        with self._readable("mlp"):
            return super().stack_neuron_results(*args, **kwargs)

    def logit_attrs(self, *args: Any, **kwargs: Any) -> Any:
        """Return what each component of a stack adds to the logits of tokens; see TransformerLens for the arguments."""
        with self._readable("unembed"):
            return super().logit_attrs(*args, **kwargs)

    def get_neuron_results(
        self, layer: int, neuron_slice: Any = None, pos_slice: Any = None, project_output_onto: Tensor | None = None
    ) -> Tensor:
        """Return what each neuron of `layer` adds to the stream; see TransformerLens for the arguments."""
        with self._readable("mlp"):
            return self._neuron_results(layer, neuron_slice, pos_slice, project_output_onto)

    def _neuron_results(self, layer: int, neuron_slice: Any, pos_slice: Any, project_output_onto: Tensor | None) -> Tensor:
        norm = self._post_norm(layer, "ln2_post")
        if norm is None:
            return super().get_neuron_results(layer, neuron_slice, pos_slice, project_output_onto)
        gain, scale = norm
        scale = (pos_slice if isinstance(pos_slice, Slice) else Slice(pos_slice)).apply(scale, dim=-2)
        if project_output_onto is None:
            return super().get_neuron_results(layer, neuron_slice, pos_slice) * gain / scale[..., None]
        onto = (project_output_onto.T * gain).T
        results = super().get_neuron_results(layer, neuron_slice, pos_slice, onto)
        return results / (scale if onto.ndim == 1 else scale[..., None])

    def _ensure_head_results(self) -> bool:
        """Let each head's result be what it adds to the stream; True where all were there already."""
        before = set(self.cache_dict)
        with self._readable("attn"):
            there = super()._ensure_head_results()
        for layer in range(self.model.cfg.n_layers):
            name, norm = f"blocks.{layer}.attn.hook_result", self._post_norm(layer, "ln1_post")
            if name not in before and norm is not None:
                gain, scale = norm
                self.cache_dict[name] = self.cache_dict[name] * gain / scale[..., None]
        return there

    def apply_ln_to_stack(  # pyright: ignore[reportIncompatibleMethodOverride] (fewer names, the same arguments)
        self,
        residual_stack: Float[Tensor, "component ... d_model"],
        layer: int | None = None,
        mlp_input: bool = False,
        **kwargs: Any,
    ) -> Float[Tensor, "component ... d_model"]:
        """Return each component as the norm of `layer` (None: the final one) passes it on: over the cached scale, times
        the norm's gain. TransformerLens leaves the gain out, which is wrong unless weights were folded.

        A LayerNorm takes each component's mean away first; its bias belongs to no component, so that the sum lacks it.
        """
        mlp_input = mlp_input and not self._side_by_side
        scaled = super().apply_ln_to_stack(residual_stack, layer, mlp_input, **kwargs)
        if kwargs.get("recompute_ln"):
            return scaled
        return scaled * gain(self._norm(layer, mlp_input)).to(scaled.device)

    def remove_batch_dim(self, batch_size: int | None = None) -> "ActivationCache":
        """Return this cache without its batch axis (batch of one). Tower entries keep theirs: it counts images."""
        if len(self.inputs) != 1:
            raise ValueError(f"only a batch of one has a batch axis to remove, this one has {len(self.inputs)} rows")
        towers = {name: value for name, value in self.cache_dict.items() if module_of(name) != "language"}
        super().remove_batch_dim(batch_size=1)
        self.cache_dict.update(towers)
        return self

    def apply_slice_to_batch_dim(self, batch_slice: Any) -> NoReturn:
        """Refuse: tower entries have one row per image, so that one slice can't fit all entries."""
        self._refuse("apply_slice_to_batch_dim", "cache[name][rows], or run_with_cache on the rows wanted")

    def _readable(self, *parts: str) -> AbstractContextManager[None]:
        """Let TransformerLens read the weights of the unembedding and of each block's `parts`, offloaded or packed."""
        bridge: Any = self.model
        owners = [bridge.unembed] if "unembed" in parts else []
        owners += [block.submodules[part] for block in bridge.blocks for part in parts if part in block.submodules]
        linears = [owner.submodules[name] for owner in owners for name in ("o", "out") if name in owner.submodules]
        return readable([*owners, *linears])

    @property
    def _side_by_side(self) -> bool:
        return bool(getattr(self.model.cfg, "parallel_attn_mlp", False))

    def _norm(self, layer: int | None, mlp_input: bool) -> Any:
        if layer is None or layer in (-1, self.model.cfg.n_layers):
            return self.model.ln_final
        block = self.model.blocks[layer]
        return block.ln2 if mlp_input else block.ln1

    def _post_norm(self, layer: int, name: str) -> tuple[Tensor, Tensor] | None:
        """Return the gain and the cached scale of the norm between a sublayer and the stream, None where there is none.

        Raises NotImplementedError where the sublayer has a bias: it would enter the stream scaled, and so not as a constant.
        """
        block = self.model.blocks[layer]
        if name not in block.submodules:
            return None
        sublayer = block.attn.submodules["o"] if name == "ln1_post" else block.mlp.submodules["out"]
        if getattr(sublayer.original_component, "bias", None) is not None:
            self._refuse("a head or neuron of a sublayer with a bias before a norm", "decompose_resid, which takes it whole")
        scale = self[f"blocks.{layer}.{name}.hook_scale"]
        return gain(getattr(block, name)).to(scale.device), scale

    def _from_merged_stream(self) -> "ActivationCache":
        view = copy.copy(self)
        view.cache_dict = {**self.cache_dict, "hook_embed": self["blocks.0.hook_resid_pre"]}
        view.has_embed, view.has_pos_embed = True, False
        return view

    def _refuse(self, what: str, instead: str) -> NoReturn:
        raise NotImplementedError(f"{what} is not exact on a multimodal cache; use {instead}")


def deepstack_in_stream(features: Float[Tensor, "place d_model"], inputs: Inputs) -> Float[Tensor, "batch pos d_model"]:
    """Return DeepStack's features (pictures of all rows, then videos) where the stream has them, 0 elsewhere."""
    images, videos = (inputs.mask(kind).to(features.device) for kind in ("image", "video"))
    whole = features.new_zeros(*images.shape, features.shape[-1])
    whole[images], whole[videos] = features[: images.sum()], features[images.sum() :]
    return whole


def gain(norm: Any) -> Tensor:
    """Return what a norm multiplies by: its weight, or 1 + its weight where it is stored as an offset."""
    weight = weight_of(norm)
    return 1 + weight if norm.uses_weight_offset else weight
