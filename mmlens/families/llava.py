"""LLaVA-1.5: a CLIP or SigLIP tower, a two-layer projector, and a Llama or Qwen2 language model."""

from collections.abc import Sequence
from typing import Any

from PIL.Image import Image
from transformer_lens.model_bridge.generalized_components import LinearBridge, VisionProjectionBridge
from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge
from transformer_lens.model_bridge.supported_architectures.llava import LlavaArchitectureAdapter

from mmlens.families.family import Family, UnsupportedModel
from mmlens.inputs import Grid, Modality, Row

TOWERS = ("clip_vision_model", "siglip_vision_model")
LANGUAGE_MODELS = ("llama", "qwen2")
STRATEGIES = ("default", "full")


class LlavaAdapter(LlavaArchitectureAdapter):
    """TransformerLens' LLaVA with transformers' own attention (ours is registered there) and the projector's neurons."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        components: Any = self.component_mapping
        components["blocks"].submodules["attn"] = AttentionBridge(
            name="self_attn",
            config=self.cfg,
            submodules={part: LinearBridge(name=f"{part}_proj") for part in "qkvo"},
            maintain_native_attention=True,
            requires_attention_mask=True,
            requires_position_embeddings=True,
        )
        components["vision_projector"] = VisionProjectionBridge(
            name="model.multi_modal_projector",
            submodules={"in": LinearBridge(name="linear_1"), "out": LinearBridge(name="linear_2")},
        )


def check(config: Any) -> None:
    """Raise UnsupportedModel, naming the setting, for a LLaVA configuration that is not understood."""
    _one_of("vision_config.model_type", config.vision_config.model_type, TOWERS)
    _one_of("text_config.model_type", config.text_config.model_type, LANGUAGE_MODELS)
    _one_of("vision_feature_select_strategy", config.vision_feature_select_strategy, STRATEGIES)
    if not isinstance(config.vision_feature_layer, int):
        raise UnsupportedModel(
            f"mmlens reads one tower layer; vision_feature_layer is {config.vision_feature_layer}: several are not supported"
        )
    if getattr(config.text_config, "use_sliding_window", False):
        raise UnsupportedModel("mmlens has not verified text_config.use_sliding_window = True in a LLaVA model")


def live_layers(config: Any) -> dict[str, int]:
    """Return how many of the tower's blocks reach the output: LLaVA reads an intermediate layer."""
    chosen, depth = config.vision_feature_layer, config.vision_config.num_hidden_layers
    return {"vision": chosen if chosen >= 0 else depth + 1 + chosen}


def encode(processor: Any, text: str, images: Sequence[Image]) -> Row:
    """Return `text` with `images` as one row.

    Where the text has no placeholder, one per image is put in front of it, each on its own line; placeholders that are
    there must match the number of images, else ValueError.
    """
    token = processor.image_token
    if images and token not in text:
        text = f"{token}\n" * len(images) + text
    if text.count(token) != len(images):
        raise ValueError(
            f"every {token} in the text stands for one image: got {text.count(token)} in {text[:60]!r} and {len(images)} "
            "image(s). Pass as many images, or leave the placeholders out and they are put in front"
        )
    encoded = processor(text=text, images=list(images) or None, return_tensors="pt")
    tokens = encoded["input_ids"][0].tolist()
    grids = tuple(grid(processor, image) for image in images)
    modality, medium = _modalities(tokens, processor, grids)
    tower = {"pixel_values": encoded["pixel_values"]} if images else {}
    return Row(text, tokens, modality, medium, tower, grids, tuple(images))


def grid(processor: Any, image: Image) -> Grid:
    """Return where the positions of `image` lie on it, from the image processor's own settings.

    Raises UnsupportedModel for a way of resizing that is not understood.
    """
    settings, size = processor.image_processor, image.size
    target = dict(settings.size) if settings.do_resize else {"height": size[1], "width": size[0]}
    if "shortest_edge" in target and "longest_edge" not in target:
        edge = target["shortest_edge"]
        resized = (
            edge if size[0] <= size[1] else edge * size[0] // size[1],
            edge if size[1] <= size[0] else edge * size[1] // size[0],
        )
    elif set(target) == {"height", "width"}:
        resized = (target["width"], target["height"])
    else:
        raise UnsupportedModel(f"mmlens does not know how an image processor resizes to {target}")
    left, top, width, height = 0, 0, *resized
    if getattr(settings, "do_center_crop", False):
        width, height = settings.crop_size["width"], settings.crop_size["height"]
        left, top = (resized[0] - width) // 2, (resized[1] - height) // 2
    patch = processor.patch_size
    rows, columns = height // patch, width // patch
    across, down = size[0] / resized[0], size[1] / resized[1]
    region = (left * across, top * down, (left + columns * patch) * across, (top + rows * patch) * down)
    return Grid(rows, columns, region, size)


def _modalities(tokens: list[int], processor: Any, grids: tuple[Grid, ...]) -> tuple[list[Modality], list[int]]:
    image = processor.image_token_id
    special = set(processor.tokenizer.all_special_ids) - {image}
    modality: list[Modality] = ["image" if t == image else "special" if t in special else "text" for t in tokens]
    owners = [index for index, grid in enumerate(grids) for _ in range(len(grid))]
    if len(owners) != modality.count("image"):
        raise UnsupportedModel(
            f"the processor made {modality.count('image')} image positions where its grid has {len(owners)}: its settings "
            f"(patch_size {processor.patch_size}, {processor.num_additional_image_tokens} additional, "
            f"{processor.vision_feature_select_strategy!r}) are not understood"
        )
    remaining = iter(owners)
    return modality, [next(remaining) if kind == "image" else -1 for kind in modality]


def _one_of(name: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise UnsupportedModel(f"a LLaVA model's {name} is one of {', '.join(known)}; this one has {value!r}")


FAMILY = Family(
    model_type="llava",
    adapter=LlavaAdapter,
    renames={
        "vision_encoder.encoder_layers.": "vision.blocks.",
        "vision_encoder.hook_vision_embed": "vision.hook_embed",
        "vision_encoder.": "vision.",
        "vision_projector.hook_vision_proj_in": "projector.hook_in",
        "vision_projector.hook_vision_proj_out": "projector.hook_out",
        "vision_projector.in.hook_out": "projector.hook_pre",
        "vision_projector.out.hook_in": "projector.hook_post",
        "vision_projector.": "projector.",
    },
    dead={
        "vision.hook_patch_embed": "vision.hook_embed",
        "vision.hook_pos_embed": "vision.hook_embed",
        "projector.hook_projected": "projector.hook_out",
    },
    read_only={"vision.hook_vision_out": "projector.hook_in", "vision.post_layernorm.*": "projector.hook_in"},
    check=check,
    encode=encode,
    live_layers=live_layers,
)
