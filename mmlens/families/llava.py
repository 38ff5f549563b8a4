"""LLaVA-1.5: a CLIP or SigLIP tower, a two-layer projector, and a Llama or Qwen2 language model."""

from typing import Any

from PIL.Image import Image
from transformer_lens.model_bridge.supported_architectures.llava import LlavaArchitectureAdapter

from mmlens.families.family import Family, UnsupportedModel, label, one_of, special_ids, with_placeholders
from mmlens.families.parts import TOWER_DEAD, TOWER_NAMES, Projector, native_attention
from mmlens.grid import Grid
from mmlens.inputs import Row
from mmlens.media import Media


class LlavaAdapter(LlavaArchitectureAdapter):
    """TransformerLens' LLaVA with transformers' own attention (ours is registered there) and the projector's neurons."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        components: Any = self.component_mapping
        components["blocks"].submodules["attn"] = native_attention(self.cfg)
        components["projector"] = Projector("model.multi_modal_projector", into="linear_1", out="linear_2")
        del components["vision_projector"]


def check(config: Any) -> None:
    """Raise UnsupportedModel, naming the setting, for a LLaVA configuration that is not understood."""
    one_of("vision_config.model_type", config.vision_config.model_type, ("clip_vision_model", "siglip_vision_model"))
    one_of("text_config.model_type", config.text_config.model_type, ("llama", "qwen2"))
    one_of("vision_feature_select_strategy", config.vision_feature_select_strategy, ("default", "full"))
    if not isinstance(config.vision_feature_layer, int):
        raise UnsupportedModel(
            f"mmlens reads one tower layer; vision_feature_layer is {config.vision_feature_layer}: several are not supported"
        )


def live_layers(config: Any) -> dict[str, int]:
    """Return how many of the tower's blocks reach the output: LLaVA reads an intermediate layer."""
    chosen, depth = config.vision_feature_layer, config.vision_config.num_hidden_layers
    return {"vision": chosen if chosen >= 0 else depth + 1 + chosen}


def encode(processor: Any, text: str, media: Media) -> Row:
    """Return `text` with its images as one row; a missing placeholder is put in front of the text, on its own line."""
    images, token = list(media.images), processor.image_token
    text = with_placeholders(text, len(images), kind="image", token=token, put=f"{token}\n")
    encoded = processor(text=text, images=images or None, return_tensors="pt")
    tokens = encoded["input_ids"][0].tolist()
    grids = tuple(grid(processor, image) for image in images)
    modality, medium = label(
        tokens,
        placeholders={processor.image_token_id: "image"},
        lengths={"image": [len(grid) for grid in grids]},
        special=special_ids(processor.tokenizer),
    )
    tower = {"pixel_values": encoded["pixel_values"]} if images else {}
    return Row(text, tokens, modality, medium, tower, grids, media.all())


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


FAMILY = Family(
    model_type="llava",
    model_class="LlavaForConditionalGeneration",
    takes=("image",),
    adapter=lambda config: LlavaAdapter,
    renames=TOWER_NAMES,
    dead=TOWER_DEAD,
    read_only={"vision.hook_vision_out": "projector.hook_in", "vision.post_layernorm.*": "projector.hook_in"},
    check=check,
    encode=encode,
    live_layers=live_layers,
)
