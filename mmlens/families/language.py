"""Text-only language models as parts of a multimodal one: TransformerLens' adapters, with attention that can be edited."""

from typing import Any

from torch import Tensor
from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.model_bridge.generalized_components import NormalizationBridge, PosEmbedBridge
from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.models.gptj.modeling_gptj import GPTJAttention

from mmlens import attention
from mmlens.families.family import one_of
from mmlens.families.parts import FusedAttention, native_attention

# What each language model may be set to: anything else changes the computation in a way that is not looked at here.
KNOWN: dict[str, dict[str, tuple[Any, ...]]] = {
    "gpt2": {"add_cross_attention": (False,)},
    "gptj": {},
    "llama": {},
    "opt": {"do_layer_norm_before": (True,), "_remove_final_layer_norm": (False,)},
    "qwen2": {"use_sliding_window": (False,)},
    "mistral": {},
}


def check_text(config: Any) -> None:
    """Raise UnsupportedModel, naming the setting, for a language model's configuration that is not understood."""
    one_of("text_config.model_type", config.model_type, sorted(KNOWN))
    for name, known in KNOWN[config.model_type].items():
        one_of(f"text_config.{name}", getattr(config, name), known)
    if config.model_type == "opt":  # OPT-350m projects its stream before it unembeds
        one_of("text_config.word_embed_proj_dim", config.word_embed_proj_dim, (config.hidden_size,))


def text_adapter(config: Any, under: str) -> type[ArchitectureAdapter]:
    """Return TransformerLens' adapter of the causal language model of `config`, for one that lies at the path `under`.

    Its attention is transformers' own (ours is registered there), and its norms compute what transformers' do.
    """
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    base: Any = SUPPORTED_ARCHITECTURES[model_class.__name__]

    class TextAdapter(base):
        def __init__(self, cfg: Any) -> None:
            super().__init__(cfg)
            self._reprefix_components("", f"{under}.")
            self.cfg.is_multimodal = True
            components: Any = self.component_mapping
            parts = components["blocks"].submodules
            parts["attn"] = _native(parts["attn"], self.cfg)
            if config.model_type == "opt":
                # OPT's MLP reads batch and positions on one axis; TransformerLens unfolds them at other points only.
                norm = parts["ln2"]
                norm.hook_scale.hook_conversion = norm.hook_normalized.hook_conversion = norm.hook_in.hook_conversion
                components["pos_embed"] = _CountedPositions(components["pos_embed"].name)
            for norm in (*parts.values(), components["ln_final"]):
                if isinstance(norm, NormalizationBridge):
                    norm.use_native_layernorm_autograd = True

    return TextAdapter


class _CountedPositions(PosEmbedBridge):
    """OPT's learned positions, without `hook_in`: that would be the attention mask, and positions are counted before."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        del self.hook_in, self._hook_registry["hook_in"]

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return what transformers' embedding returns."""
        return self.hook_out(self.original_component(*args, **kwargs))  # pyright: ignore[reportOptionalCall]


def _native(attn: Any, config: Any) -> AttentionBridge:
    """Return attention that transformers computes, with the parts that TransformerLens' re-implementation `attn` names."""
    parts = {key: part.name for key, part in attn.submodules.items()}
    if "qkv" in parts:
        return FusedAttention(config, attn.name, qkv=parts["qkv"], o=parts["o"])
    return native_attention(config, attn.name, **{key: parts[key] for key in "qkvo"})


class _RoutedGPTJAttention(GPTJAttention):
    """GPT-J's attention, which transformers writes out, by the function that all others call."""

    def _attn(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        # GPT-J compares queries and keys in float32, whatever its weights are in: 16 bits would overflow.
        scale: Any = self.scale_attn
        mixed, _ = attention.attention(
            self, query.float(), key.float(), value.float(), attention_mask, scaling=1 / float(scale)
        )
        return mixed.to(value.dtype).transpose(1, 2), None


def prepare_text(language_model: Any) -> None:
    """Change a transformers language model so that its attention calls mmlens' function where it would not by itself."""
    for module in language_model.modules():
        if type(module) is GPTJAttention:
            module.__class__ = _RoutedGPTJAttention
            module.config._attn_implementation_internal = attention.NAME  # its mask is then made as that function needs it
