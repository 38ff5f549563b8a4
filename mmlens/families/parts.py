"""The components that families are made of: TransformerLens' own, with transformers' attention kept and towers hooked.

Point names come from here: a tower's block has `hook_resid_pre/mid/post`, `hook_attn_out`, `hook_mlp_out`,
`attn.hook_q/k/v/z/pattern/pattern_mean/attn_scores`, `mlp.hook_pre/post` (and `hook_pre_linear`, where it is gated), as
in the language model.
"""

from types import SimpleNamespace
from typing import Any

from torch import nn
from transformer_lens.conversion_utils.conversion_steps.base_tensor_conversion import BaseTensorConversion
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components import GatedMLPBridge, LinearBridge, MLPBridge
from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from mmlens.families.family import UnsupportedModel

# What TransformerLens calls the points of its CLIP and SigLIP towers, and those of them that nothing fires.
TOWER_NAMES = {
    "vision_encoder.encoder_layers.": "vision.blocks.",
    "vision_encoder.hook_vision_embed": "vision.hook_embed",
    "vision_encoder.": "vision.",
}
TOWER_DEAD = {"vision.hook_patch_embed": "vision.hook_embed", "vision.hook_pos_embed": "vision.hook_embed"}
ACTIVATIONS = ("transformers.activations", "torch.nn.modules.activation")  # where the classes of activation functions are


def heads(count: int, d_model: int, *, key_value: int | None = None, d_head: int | None = None) -> Any:
    """Return the sizes that an attention component needs to split heads."""
    sizes = dict(n_heads=count, d_model=d_model, d_head=d_head or d_model // count, n_key_value_heads=key_value)
    return SimpleNamespace(**sizes)


def native_attention(
    config: Any, name: str = "self_attn", *, q: str = "q_proj", k: str = "k_proj", v: str = "v_proj", o: str = "o_proj"
) -> AttentionBridge:
    """Return attention that transformers computes (by the function that mmlens registers), with hooks on its parts."""
    return AttentionBridge(
        name=name,
        config=config,
        submodules={part: LinearBridge(name=path) for part, path in zip("qkvo", (q, k, v, o), strict=True)},
        maintain_native_attention=True,
        requires_attention_mask=True,
        requires_position_embeddings=True,
    )


class FusedAttention(AttentionBridge):
    """Attention whose queries, keys and values come from one linear map: `hook_q/k/v` fire where they are compared.

    So, with rotary positions, `hook_q` and `hook_k` are seen after the rotation. Heads have an axis of their own at
    `hook_z` too: `[batch, pos, head, d_head]`, with a batch of one where a tower packs all its media into one row.
    """

    def __init__(self, config: Any, name: str, *, qkv: str, o: str) -> None:
        super().__init__(
            name=name,
            config=config,
            submodules={"qkv": LinearBridge(name=qkv), "o": LinearBridge(name=o)},
            maintain_native_attention=True,
            fused_qkv=True,
        )
        self.hook_q, self.hook_k, self.hook_v = HookPoint(), HookPoint(), HookPoint()

    def _setup_qkv_hook_reshaping(self) -> None:
        super()._setup_qkv_hook_reshaping()
        self.o.hook_in.hook_conversion = _Heads(self._get_n_heads())


class _Heads(BaseTensorConversion):
    """[batch, pos, d_model], or [pos, d_model] of a packed row, as [batch, pos, head, d_head] and back."""

    splits_attention_heads = True

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count, self.packed = count, False

    def handle_conversion(self, input_value: Any, *full_context: Any) -> Any:
        """Return `input_value` with an axis of heads."""
        self.packed = input_value.ndim == 2
        split = input_value.unflatten(-1, (self.count, -1))
        return split[None] if self.packed else split

    def revert(self, input_value: Any, *full_context: Any) -> Any:
        """Return `input_value` in the shape that it came in."""
        flat = input_value.flatten(-2)
        return flat[0] if self.packed else flat


def mlp(config: Any, into: str, out: str, *, gate: str | None = None, name: str | None = "mlp") -> MLPBridge:
    """Return an MLP with `hook_pre` and `hook_post`; with `gate` a gated one, whose `hook_pre_linear` is `into`'s output.

    `name=None` where its linear maps lie on the block itself: its `hook_in` and `hook_out` are then theirs.
    """
    parts: dict[str, GeneralizedComponent] = {"in": LinearBridge(name=into), "out": LinearBridge(name=out)}
    if gate is None:
        return MLPBridge(name=name, config=config, submodules=parts)
    return GatedMLPBridge(name=name, config=config, submodules={"gate": LinearBridge(name=gate), **parts})


def activation_beside(model: nn.Module, linear: nn.Module) -> nn.Module:
    """Return the activation function that lies beside the component `linear` in a transformers model: an MLP's own.

    Raises UnsupportedModel where there is none, or more than one.
    """
    path = next(name for name, module in model.named_modules() if module is linear)
    owner = model.get_submodule(path.rpartition(".")[0])
    found = [child for child in owner.children() if type(child).__module__ in ACTIVATIONS]
    if len(found) != 1:
        raise UnsupportedModel(
            f"mmlens knows MLPs with one activation function beside their maps; a {type(owner).__name__} has {len(found)}"
        )
    return found[0]


class TowerBlock(GeneralizedComponent):
    """One block of a tower: norms, attention and an MLP, each computed by transformers."""

    is_list_item = True
    hook_aliases = {  # noqa: RUF012 (TransformerLens declares it so)
        "hook_resid_pre": "hook_in",
        "hook_resid_mid": "ln2.hook_in",
        "hook_resid_post": "hook_out",
        "hook_attn_in": "attn.hook_in",
        "hook_attn_out": "attn.hook_out",
        "hook_mlp_in": "mlp.hook_in",
        "hook_mlp_out": "mlp.hook_out",
    }

    def __init__(
        self,
        name: str,
        *,
        ln1: str,
        attn: AttentionBridge,
        ln2: str,
        mlp: MLPBridge,
        added: tuple[str, str] | None = None,
    ) -> None:
        """`added`: the modules whose outputs attention and the MLP add to the stream, where those are not their own."""
        norms = {"ln1": GeneralizedComponent(name=ln1), "ln2": GeneralizedComponent(name=ln2)}
        parts: dict[str, GeneralizedComponent] = {"ln1": norms["ln1"], "attn": attn, "ln2": norms["ln2"], "mlp": mlp}
        overrides: dict[str, str] = {}
        for branch, path in zip(("attn", "mlp"), added or (), strict=False):
            parts[f"{branch}_added"] = GeneralizedComponent(name=path)
            overrides[f"hook_{branch}_out"] = f"{branch}_added.hook_out"
        super().__init__(name, submodules=parts, hook_alias_overrides=overrides or None)


class Projector(GeneralizedComponent):
    """What maps tower features into the stream; with two linear maps, `hook_pre` and `hook_post` are its neurons'."""

    def __init__(self, name: str, *, into: str | None = None, out: str | None = None) -> None:
        parts = {"in": into, "out": out}
        super().__init__(name, submodules={key: LinearBridge(name=path) for key, path in parts.items() if path})
        if into and out:
            self.hook_aliases = {"hook_pre": "in.hook_out", "hook_post": "out.hook_in"}
