"""Idefics3 (and SmolVLM 1, Granite-Docling): a SigLIP-like tower that sees a picture in tiles, a pixel shuffle, and Llama.

A picture is resized to whole tiles and cut; each tile's positions follow a token that names its row and column, and a tile
that shows the whole picture comes last. Neighbouring patches are put together (`scale_factor` x `scale_factor` of them) into
one position of the stream.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge.supported_architectures.idefics3 import Idefics3ArchitectureAdapter
from transformers.models.idefics3.image_processing_pil_idefics3 import MAX_IMAGE_SIZE

from mmlens.families.family import Family, UnsupportedModel, label, one_of, special_ids, tile_entries, with_placeholders
from mmlens.families.parts import TOWER_DEAD, TOWER_NAMES, Projector, native_attention
from mmlens.grid import Grid, Tiles
from mmlens.inputs import MODALITIES, PAD, Modality, Row
from mmlens.media import Media


class Idefics3Adapter(Idefics3ArchitectureAdapter):
    """TransformerLens' Idefics3 with transformers' own attention and the projector's linear map (`projector.in`)."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        components: Any = self.component_mapping
        components["blocks"].submodules["attn"] = native_attention(self.cfg)
        components["projector"] = Projector("model.connector", into="modality_projection.proj")
        del components["vision_projector"]


def check(config: Any) -> None:
    """Raise UnsupportedModel, naming the setting, for an Idefics3 or SmolVLM configuration that is not understood."""
    vision = config.vision_config
    one_of("text_config.model_type", config.text_config.model_type, ("llama",))
    for name in ("image_size", "patch_size"):
        if not isinstance(getattr(vision, name), int):
            raise UnsupportedModel(f"mmlens knows square tiles and patches; vision_config.{name} is {getattr(vision, name)}")


def settle(processor: Any, config: Any) -> None:
    """Tell the processor how large the tower's patches are: what they leave over of a tile, the model does not see.

    Raises UnsupportedModel where the processor's tiles have another number of positions than the model's.
    """
    patch = config.vision_config.patch_size
    patches = _tile(processor.image_processor) // patch
    positions, left_over = divmod(patches, config.scale_factor)
    if left_over or positions**2 != processor.image_seq_len:
        raise UnsupportedModel(
            f"a tile of this processor has {processor.image_seq_len} positions (image_seq_len), which the model's {patches} "
            f"x {patches} patches, {config.scale_factor} x {config.scale_factor} to a position, do not give: set it right"
        )
    processor.patch_size = patch


def encode(processor: Any, text: str, media: Media) -> Row:
    """Return `text` with its images as one row; a missing placeholder is put in front of the text."""
    images, token = list(media.images), processor.image_token
    text = with_placeholders(text, len(images), kind="image", token=token)
    encoded = processor(text=text, images=[images] if images else None, return_tensors="pt")
    tokens = encoded["input_ids"][0].tolist()
    places = tuple(tiles(processor, image.size) for image in images)
    modality, medium = label(
        tokens,
        placeholders={processor.image_token_id: "image"},
        lengths={"image": [len(place) for place in places]},
        special=special_ids(processor.tokenizer),
    )
    tower = {name: encoded[name] for name in ("pixel_values", "pixel_attention_mask") if name in encoded} if images else {}
    entries, inside = tile_entries(medium, places), seen(processor, tower, ["image"])
    return Row(text, tokens, modality, medium, tower, places, media.all(), entries=entries, inside=inside)


def seen(processor: Any, tower: dict[str, Tensor], kinds: Sequence[Modality]) -> dict[str, Tensor]:
    """Return a row's `inside`: the patches of its tiles, each of one of the `kinds`, that are not all padding."""
    if "pixel_attention_mask" not in tower:
        return {}
    patches, edge = tower["pixel_attention_mask"][0], processor.patch_size
    real = patches.unfold(1, edge, edge).unfold(2, edge, edge).flatten(-2).any(-1).flatten(1)
    kind = torch.tensor([MODALITIES.index(kind) for kind in kinds])
    return {"vision": torch.where(real, kind[:, None], PAD)}


def tiles(processor: Any, size: tuple[int, int]) -> Tiles:
    """Return where the positions of a picture of `size` (width, height) lie: the tiles row by row, then the whole picture.

    A picture that one tile can hold has that tile only. Raises UnsupportedModel for settings that are not understood.
    """
    settings = processor.image_processor
    edge = _tile(settings)
    width, height = in_whole_tiles(settings, size)
    cut = (width, height) if (width > edge or height > edge) else (0, 0)
    corners = [(x, y) for y in range(0, cut[1], edge) for x in range(0, cut[0], edge)]
    parts = [part(processor, (x / width, y / height, edge / width, edge / height), size) for x, y in corners]
    return Tiles((*parts, part(processor, (0.0, 0.0, 1.0, 1.0), size)), size)


def part(
    processor: Any,
    shown: tuple[float, float, float, float],
    size: tuple[int, int],
    *,
    frames: tuple[int, int] | None = None,
) -> Grid:
    """Return the lattice of a tile that shows (left, top, width, height) of the picture, as fractions of it.

    What is left over behind the last whole patch is not looked at. Raises UnsupportedModel for a processor that was not
    told how large patches are.
    """
    if getattr(processor, "patch_size", None) is None:
        raise UnsupportedModel(
            "the processor does not say how large the tower's patches are: set processor.patch_size, or let HookedMLLM do it"
        )
    edge, count = _tile(processor.image_processor), math.isqrt(processor.image_seq_len)
    seen = edge // processor.patch_size * processor.patch_size / edge
    left, top, width, height = shown
    region = (left * size[0], top * size[1], (left + width * seen) * size[0], (top + height * seen) * size[1])
    return Grid(count, count, region, size, frames=frames)


def in_whole_tiles(settings: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Return the (width, height) to which a picture is resized before it is cut: one tile's where it is not cut."""
    edge = _tile(settings)
    if not settings.do_image_splitting:
        return edge, edge
    width, height = _first(settings, size)
    aspect = width / height
    if width >= height:
        width = math.ceil(width / edge) * edge
        return width, math.ceil(int(width / aspect) / edge) * edge
    height = math.ceil(height / edge) * edge
    return math.ceil(int(height * aspect) / edge) * edge, height


def _first(settings: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Return the (width, height) to which a picture is resized at first, its shape kept as far as whole pixels allow."""
    if not settings.do_resize:
        return size
    target = {name: value for name, value in dict(settings.size).items() if value is not None}
    if set(target) == {"height", "width"}:
        return target["width"], target["height"]
    if set(target) != {"longest_edge"}:
        raise UnsupportedModel(f"mmlens does not know how an image processor resizes to {target}")
    longest, aspect = target["longest_edge"], size[0] / size[1]
    short = int(longest / aspect if aspect >= 1 else longest * aspect)
    short = max(short + short % 2, 1)
    if longest > MAX_IMAGE_SIZE:
        aspect = longest / short if aspect >= 1 else short / longest
        longest, short = MAX_IMAGE_SIZE, max(int(MAX_IMAGE_SIZE / aspect if aspect >= 1 else MAX_IMAGE_SIZE * aspect), 1)
    return (longest, short) if size[0] >= size[1] else (short, longest)


def _tile(settings: Any) -> int:
    """Return how many pixels wide and high a tile is."""
    return dict(settings.max_image_size)["longest_edge"]


FAMILY = Family(
    model_type="idefics3",
    model_class="Idefics3ForConditionalGeneration",
    takes=("image",),
    adapter=lambda config: Idefics3Adapter,
    renames=TOWER_NAMES,
    dead={**TOWER_DEAD, "vision.embeddings.hook_in": "vision.hook_in"},
    check=check,
    settle=settle,
    encode=encode,
    live_layers=lambda config: {},
)
