"""Vision towers by their transformers model type: where their blocks lie, and what is added to their stream."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformers.models.beit.modeling_beit import BeitLayer

from mmlens.families.family import one_of
from mmlens.families.parts import TowerBlock, heads, mlp, native_attention


@dataclass(frozen=True)
class Tower:
    """Paths inside a tower: its `blocks`, the norms before and behind them, and each block's parts.

    `cls` says whether its first position is a class token; `added` are the paths, in a block, at which what attention and
    the MLP add to the stream can be had, where that is not what they return.
    """

    blocks: str
    ln1: str
    attn: str
    o: str
    ln2: str
    cls: bool
    pre_norm: str | None = None
    post_norm: str | None = None
    added: tuple[str, str] | None = None


_CLIP: dict[str, Any] = dict(blocks="encoder.layers", ln1="layer_norm1", attn="self_attn", o="out_proj", ln2="layer_norm2")
_VIT: dict[str, Any] = dict(blocks="layers", ln1="layernorm_before", attn="attention", o="o_proj", ln2="layernorm_after")
TOWERS: dict[str, Tower] = {
    "clip_vision_model": Tower(**_CLIP, cls=True, pre_norm="pre_layrnorm"),
    "siglip_vision_model": Tower(**_CLIP, cls=False, post_norm="post_layernorm"),
    "vit": Tower(**_VIT, cls=True, post_norm="layernorm"),
    "beit": Tower(**_VIT, cls=True, post_norm="layernorm", added=("added_by_attention", "added_by_mlp")),
}


def check_tower(config: Any) -> None:
    """Raise UnsupportedModel, naming the setting, for a tower's configuration that is not understood."""
    one_of("vision_config.model_type", config.model_type, sorted(TOWERS))
    one_of("the type of vision_config.patch_size", type(config.patch_size).__name__, ("int",))


class VisionTower(GeneralizedComponent):
    """A tower: `hook_in` are the pixels, `hook_embed` what its embeddings give, `hook_out` what is read of it.

    That is hidden state `layer`, or, for None, the tower's own output.
    """

    def __init__(self, name: str, config: Any, layer: int | None) -> None:
        tower = TOWERS[config.model_type]
        sizes = heads(config.num_attention_heads, config.hidden_size)
        norms = {"pre_layernorm": tower.pre_norm}
        if layer is None and not (config.model_type == "beit" and config.use_mean_pooling):  # then it has none there
            norms["post_layernorm"] = tower.post_norm
        blocks = TowerBlock(
            tower.blocks,
            ln1=tower.ln1,
            attn=native_attention(sizes, tower.attn, o=tower.o),
            ln2=tower.ln2,
            mlp=mlp(sizes, "fc1", "fc2"),
            added=tower.added,
        )
        parts: dict[str, GeneralizedComponent] = {"embed": GeneralizedComponent(name="embeddings"), "encoder_layers": blocks}
        parts |= {key: GeneralizedComponent(name=path) for key, path in norms.items() if path}
        super().__init__(name, submodules=parts)
        self._layer = layer

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        """Return what transformers' tower returns, with what hooks made of what is read of it."""
        output: Any = self.original_component(self.hook_in(pixel_values), **kwargs)  # pyright: ignore[reportOptionalCall]
        if self._layer is None:
            output.last_hidden_state = self.hook_out(output.last_hidden_state)
        else:
            states = list(output.hidden_states)
            states[self._layer] = self.hook_out(states[self._layer])
            output.hidden_states = tuple(states)
        return output


TOWER_RENAMES = {
    "vision_encoder.encoder_layers.": "vision.blocks.",
    "vision_encoder.embed.hook_out": "vision.hook_embed",
    "vision_encoder.": "vision.",
}


def prepare_tower(tower: nn.Module) -> None:
    """Give a tower modules where what a block adds to its stream would have none."""
    for module in tower.modules():
        if type(module) is BeitLayer:
            module.__class__ = _OpenBeitLayer
            module.added_by_attention, module.added_by_mlp = nn.Identity(), nn.Identity()


class _OpenBeitLayer(BeitLayer):
    """BEiT's block, with a module for each branch where it is added: after its scale, which is a bare parameter."""

    added_by_attention: Callable[[Tensor], Tensor]
    added_by_mlp: Callable[[Tensor], Tensor]

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        resolution: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if self.relative_position_bias is not None and resolution is not None:
            patch: Any = self.patch_size
            window = (resolution[0] // patch, resolution[1] // patch)
            bias = self.relative_position_bias(window, interpolate_pos_encoding, dim_size=hidden_states.shape[1])
            attention_mask = bias if attention_mask is None else bias + attention_mask
        mixed, _ = self.attention(self.layernorm_before(hidden_states), attention_mask=attention_mask, **kwargs)
        hidden_states = self.added_by_attention(self.drop_path(self.lambda_1 * self.dropout(mixed))) + hidden_states
        out = self.mlp(self.layernorm_after(hidden_states))
        return self.added_by_mlp(self.drop_path(self.lambda_2 * self.dropout(out))) + hidden_states
