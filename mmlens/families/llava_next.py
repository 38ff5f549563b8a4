"""LLaVA-NeXT (1.6): a CLIP tower that sees a picture in tiles, a two-layer projector, and Llama, Mistral or Qwen2."""

from typing import Any

from PIL.Image import Image

from mmlens.families import llava
from mmlens.families.anyres import anyres, tile_count, tile_edge
from mmlens.families.family import Family, UnsupportedModel, label, one_of, special_ids, with_placeholders
from mmlens.grid import Tiles
from mmlens.inputs import Row
from mmlens.media import Media


def check(config: Any) -> None:
    """Raise UnsupportedModel, naming the setting, for a LLaVA-NeXT configuration that is not understood."""
    text, vision = config.text_config, config.vision_config
    one_of("vision_config.model_type", vision.model_type, ("clip_vision_model", "siglip_vision_model"))
    one_of("text_config.model_type", text.model_type, ("llama", "mistral", "qwen2"))
    one_of("vision_feature_select_strategy", config.vision_feature_select_strategy, ("default", "full"))
    if not isinstance(config.vision_feature_layer, int):
        raise UnsupportedModel(
            f"mmlens reads one tower layer; vision_feature_layer is {config.vision_feature_layer}: several are not supported"
        )
    one_of("vision_config.image_size % patch_size", vision.image_size % vision.patch_size, (0,))


def encode(processor: Any, text: str, media: Media) -> Row:
    """Return `text` with its images as one row; a missing placeholder is put in front of the text, on its own line."""
    images, token = list(media.images), processor.image_token
    text = with_placeholders(text, len(images), kind="image", token=token, put=f"{token}\n")
    encoded = processor(text=text, images=images or None, return_tensors="pt")
    tokens = encoded["input_ids"][0].tolist()
    grids = tuple(tiles(processor, image) for image in images)
    modality, medium = label(
        tokens,
        placeholders={processor.image_token_id: "image"},
        lengths={"image": [len(grid) for grid in grids]},
        special=special_ids(processor.tokenizer),
    )
    tower = {name: encoded[name] for name in ("pixel_values", "image_sizes")} if images else {}
    pinpoints, edge = processor.image_processor.image_grid_pinpoints, tile_edge(processor.image_processor)
    read = [(number, tile_count(image.size, pinpoints, edge=edge)) for number, image in enumerate(images)]
    return Row(text, tokens, modality, medium, tower, grids, media.all(), entries={"pixel_values": read})


def tiles(processor: Any, image: Image) -> Tiles:
    """Return where the positions of `image` lie on it. Raises UnsupportedModel for settings that are not understood."""
    settings = processor.image_processor
    return anyres(image.size, settings.image_grid_pinpoints, edge=tile_edge(settings), patch=processor.patch_size)


FAMILY = Family(
    model_type="llava_next",
    model_class="LlavaNextForConditionalGeneration",
    takes=("image",),
    adapter=lambda config: llava.LlavaAdapter,
    renames=llava.FAMILY.renames,
    dead=llava.FAMILY.dead,
    read_only=llava.FAMILY.read_only,
    check=check,
    encode=encode,
    live_layers=llava.live_layers,
)
