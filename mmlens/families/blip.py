"""BLIP-2 and InstructBLIP: a ViT tower, a Q-Former of learned queries, and OPT or Llama.

The Q-Former stands between tower and projector. Its stream is what its norms put out: each sublayer's output is added and
the sum normalised, so that, where `x` is what enters the sublayer, the stream behind it is `LayerNorm(x + output)`:

- `qformer.blocks.{l}.hook_resid_pre`: what enters a block: the queries [image, query, d_model], and behind them, in
  InstructBLIP, the words of the instruction;
- `hook_resid_mid`: after self-attention, the norm of `hook_resid_pre + hook_attn_out`;
- `hook_resid_mid_cross`: the queries after attention to the picture (the blocks that have it), the norm of
  `hook_resid_mid` at the queries `+ hook_cross_attn_out`;
- `hook_resid_post`: after the feed-forward branches, the norm of the stream before them `+ hook_mlp_out`: at the queries the
  branch `qformer`, at the words the branch `qformer_text`, each with its own neurons.

An edit of the stream reaches all that follows, the skip path too. `attn.*` is self-attention, `cross_attn.*` attention to
the picture: `cross_attn.k.hook_in` is the tower's output. A query has no place on the picture, so there are no grids.
"""

import re
from functools import wraps
from typing import Any

import torch
from transformer_lens.model_bridge.generalized_components import LinearBridge, MLPBridge
from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.supported_architectures.llama import LlamaArchitectureAdapter
from transformer_lens.model_bridge.supported_architectures.opt import OptArchitectureAdapter

from mmlens import attention
from mmlens.families.family import UnsupportedModel, label, one_of, special_ids, with_placeholders
from mmlens.families.parts import FusedAttention, Projector, TowerBlock, heads, mlp, native_attention
from mmlens.inputs import MODALITIES, Row
from mmlens.media import Media


class Tower(GeneralizedComponent):
    """The ViT: `hook_in` are the pixels, `hook_embed` what enters the blocks, `hook_out` what the Q-Former attends to."""

    hook_aliases = {"hook_embed": "embed.hook_out"}  # noqa: RUF012 (TransformerLens declares it so)

    def __init__(self, config: Any) -> None:
        sizes = heads(config.num_attention_heads, config.hidden_size)
        attn = FusedAttention(sizes, "self_attn", qkv="qkv", o="projection")
        neurons = mlp(sizes, "fc1", "fc2")
        blocks = TowerBlock("encoder.layers", ln1="layer_norm1", attn=attn, ln2="layer_norm2", mlp=neurons)
        super().__init__("vision_model", submodules={"embed": GeneralizedComponent("embeddings"), "blocks": blocks})

    def forward(self, pixel_values: Any, **kwargs: Any) -> Any:
        """Return what transformers' tower returns; the pixels first, also where they came by name."""
        return super().forward(pixel_values, **kwargs)


class QFormer(GeneralizedComponent):
    """The Q-Former: `hook_in` are its learned queries, `hook_out` what its last block puts out."""

    def __init__(self, config: Any, *, reads_text: bool) -> None:
        super().__init__("qformer", submodules={"blocks": QFormerBlock(config, reads_text=reads_text)})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what transformers' Q-Former returns."""
        kwargs["query_embeds"] = self.hook_in(kwargs["query_embeds"])
        output: Any = self.original_component(*args, **kwargs)  # pyright: ignore[reportOptionalCall]
        output.last_hidden_state = self.hook_out(output.last_hidden_state)
        return output


class QFormerBlock(GeneralizedComponent):
    """One block: attention among queries and words, of queries to the picture, and a feed-forward branch for each."""

    is_list_item = True
    hook_aliases = {  # noqa: RUF012 (TransformerLens declares it so)
        "hook_resid_pre": "hook_in",
        "hook_attn_out": "attn.o.hook_out",
        "hook_resid_mid": "attn.hook_out",
        "hook_cross_attn_out": "cross_attn.o.hook_out",
        "hook_resid_mid_cross": "cross_attn.hook_out",
        "hook_mlp_out": "mlp.out.hook_out",
        "hook_resid_post": "hook_out",
    }

    def __init__(self, config: Any, *, reads_text: bool) -> None:
        sizes = heads(config.num_attention_heads, config.hidden_size)
        parts: dict[str, GeneralizedComponent] = {
            "ln1": GeneralizedComponent("attention.output.LayerNorm"),
            "attn": QFormerAttention(sizes, "attention"),
            "ln_cross": GeneralizedComponent("crossattention.output.LayerNorm", optional=True),
            "cross_attn": QFormerAttention(sizes, "crossattention", optional=True),
            "ln2": GeneralizedComponent("output_query.LayerNorm"),
            "mlp": branch("intermediate_query", "output_query"),
        }
        more = {}
        if reads_text:
            parts |= {"ln_text": GeneralizedComponent("output.LayerNorm"), "mlp_text": branch("intermediate", "output")}
            more = {"hook_text_mlp_out": "mlp_text.out.hook_out"}
        super().__init__("encoder.layer", submodules=parts, hook_alias_overrides=more)


class QFormerAttention(AttentionBridge):
    """Attention whose norm is part of it: what it adds to the stream is `o`'s output, its own is the normalised sum."""

    def __init__(self, sizes: Any, name: str, *, optional: bool = False) -> None:
        parts = {"q": "attention.query", "k": "attention.key", "v": "attention.value", "o": "output.dense"}
        super().__init__(
            name=name,
            config=sizes,
            submodules={part: LinearBridge(name=path) for part, path in parts.items()},
            maintain_native_attention=True,
            optional=optional,
        )

    def set_original_component(self, original_component: Any) -> None:
        """Wrap transformers' attention, whose inner module is the one that computes scores."""
        super().set_original_component(original_component)
        attention.attach(original_component.attention, self)


def branch(into: str, out: str) -> MLPBridge:
    """Return a feed-forward branch of the Q-Former, whose two linear maps lie in two modules of the block."""
    return MLPBridge(
        name=None, submodules={"in": LinearBridge(name=f"{into}.dense"), "out": LinearBridge(name=f"{out}.dense")}
    )


def adapter(config: Any) -> type[LlamaArchitectureAdapter] | type[OptArchitectureAdapter]:
    """Return the adapter of the language model that `config` names, with tower, Q-Former and projector before it."""
    opt = config.text_config.model_type == "opt"
    base: Any = OptArchitectureAdapter if opt else LlamaArchitectureAdapter

    class BlipAdapter(base):
        def __init__(self, cfg: Any) -> None:
            super().__init__(cfg)
            self._reprefix_components("model.", "language_model.model.")
            self.cfg.is_multimodal = True
            parts: Any = self.component_mapping
            parts["unembed"].name = "language_model.lm_head"
            parts["blocks"].submodules["attn"] = native_attention(self.cfg, o="out_proj" if opt else "o_proj")
            if opt:  # OPT's MLP reads batch and positions on one axis; TransformerLens unfolds them at other points only
                norm = parts["blocks"].submodules["ln2"]
                norm.hook_scale.hook_conversion = norm.hook_normalized.hook_conversion = norm.hook_in.hook_conversion
            parts["vision"] = Tower(config.vision_config)
            parts["qformer"] = QFormer(config.qformer_config, reads_text=config.model_type == "instructblip")
            parts["projector"] = Projector("language_projection")

    return BlipAdapter


def check(config: Any, *, kind: str, language: str) -> None:
    """Raise UnsupportedModel, naming the setting, for a configuration of this `kind` that is not understood."""
    text, qformer = config.text_config, config.qformer_config
    if getattr(text, "is_encoder_decoder", False):
        raise UnsupportedModel(
            f"text_config.model_type is {text.model_type!r}, an encoder-decoder: encoder and decoder each have a stream of "
            "positions, and one name (blocks.0.hook_resid_pre) and one mask would stand for both. Names and masks for two "
            f"streams would be needed; take a checkpoint with {language}"
        )
    one_of("text_config.model_type", text.model_type, (language,))
    one_of("vision_config.model_type", config.vision_config.model_type, (f"{kind}_vision_model",))
    one_of("qformer_config.model_type", qformer.model_type, (f"{kind}_qformer",))
    # In chunks, a hook would fire several times a run.
    one_of("qformer_config.chunk_size_feed_forward", getattr(qformer, "chunk_size_feed_forward", 0), (0,))
    if config.image_token_index is None:
        raise UnsupportedModel(
            "image_token_index is None, as in old checkpoints: transformers 5 finds the positions of images by it. Take a "
            "newer revision, or add <image> to tokenizer and embeddings, and set image_token_index in the model's config "
            "and num_query_tokens in the processor's"
        )


def prepare(model: Any) -> None:
    """Let a text without a picture run through the language model alone: transformers' forward insists on pixels."""
    base = type(model)

    @wraps(base.forward)
    def forward(self: Any, pixel_values: Any = None, *args: Any, **kwargs: Any) -> Any:
        alone = pixel_values is None and kwargs.get("mm_encoder_outputs") is None
        return self.language_model(**kwargs) if alone else base.forward(self, pixel_values, *args, **kwargs)

    @wraps(base.generate)
    def generate(self: Any, pixel_values: Any = None, *args: Any, **kwargs: Any) -> Any:
        if pixel_values is None:
            return self.language_model.generate(*args, **kwargs)
        return base.generate(self, pixel_values, *args, **kwargs)

    model.__class__ = type(base.__name__, (base,), {"forward": forward, "generate": generate, "__module__": __name__})


def settle(processor: Any, config: Any) -> None:
    """Raise UnsupportedModel where the processor marks images otherwise than the model looks for them."""
    token = processor.tokenizer.convert_tokens_to_ids(str(processor.image_token))
    one_of("the processor's image token", token, (config.image_token_index,))
    one_of("the processor's num_query_tokens", processor.num_query_tokens, (config.num_query_tokens,))


def encode(processor: Any, text: str, media: Media) -> Row:
    """Return `text` with its images as one row.

    Images in front of the text come before its first token (`<s>`), as transformers' processor has it; a placeholder inside
    the text stands where it is. InstructBLIP's Q-Former reads the text, without placeholders, with each image.
    """
    images, token, queries = list(media.images), str(processor.image_token), processor.num_query_tokens
    text = with_placeholders(text, len(images), kind="image", token=token)
    front = re.match(rf"(?:\s*{re.escape(token)})+\s*", text)
    before, rest = (front[0].count(token), text[front.end() :]) if front else (0, text)
    tokens = [
        *processor.tokenizer(token * queries * before, add_special_tokens=False)["input_ids"],
        *processor.tokenizer(rest.replace(token, token * queries))["input_ids"],
    ]
    modality, medium = label(
        tokens,
        placeholders={processor.tokenizer.convert_tokens_to_ids(token): "image"},
        lengths={"image": [queries] * len(images)},
        special=special_ids(processor.tokenizer),
    )
    tower, inside = {}, {}
    if images:
        inside["qformer"] = torch.full((len(images), queries), MODALITIES.index("image"))
        tower["pixel_values"] = processor.image_processor(images, return_tensors="pt")["pixel_values"]
        if reader := getattr(processor, "qformer_tokenizer", None):
            words = reader(rest.replace(token, " "), return_tensors="pt")
            tower["qformer_input_ids"] = words["input_ids"].repeat(len(images), 1)
            tower["qformer_attention_mask"] = words["attention_mask"].repeat(len(images), 1)
            kinds, _ = label(words["input_ids"][0].tolist(), placeholders={}, lengths={}, special=special_ids(reader))
            inside["qformer_text"] = torch.tensor([[MODALITIES.index(kind) for kind in kinds]] * len(images))
    return Row(text, tokens, modality, medium, tower, (None,) * len(images), media.all(), inside=inside)
