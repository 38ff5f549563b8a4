"""Gemma 3: a SigLIP tower, a projector that pools its patches, and a language model whose images see themselves whole."""

from math import floor, isqrt
from typing import Any

from PIL.Image import Image
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components import RotaryEmbeddingBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.supported_architectures.gemma3_multimodal import Gemma3MultimodalArchitectureAdapter

from mmlens.families.family import Family, UnsupportedModel, label, one_of, special_ids, tile_entries, with_placeholders
from mmlens.families.parts import TOWER_DEAD, TOWER_NAMES, Projector, native_attention
from mmlens.grid import Box, Grid, Tiles
from mmlens.inputs import Row
from mmlens.media import Media

LAYERS = ("full_attention", "sliding_attention")


class HeadNorm(GeneralizedComponent):
    """The norm of each head's queries or keys: its points see [batch, pos, head, d_head], as `hook_q` does."""

    def forward(self, heads: Tensor) -> Tensor:
        """Return [batch, head, pos, d_head] normed; transformers has heads before positions here."""
        normed = self.original_component(self.hook_in(heads.transpose(1, 2)).transpose(1, 2))  # pyright: ignore
        return self.hook_out(normed.transpose(1, 2)).transpose(1, 2)


class Rotary(RotaryEmbeddingBridge):
    """Two sets of angles: `hook_cos/sin` are those of the global layers, `hook_cos_local/sin_local` of the local ones."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.hook_cos_local, self.hook_sin_local = HookPoint(), HookPoint()

    def forward(self, x: Tensor, position_ids: Tensor, layer_type: str) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines of the layers of one type."""
        cos, sin = self.original_component(self.hook_in(x), position_ids, layer_type)  # pyright: ignore
        if layer_type == "sliding_attention":
            return self.hook_cos_local(cos), self.hook_sin_local(sin)
        return self.hook_cos(cos), self.hook_sin(sin)


class Gemma3Adapter(Gemma3MultimodalArchitectureAdapter):
    """TransformerLens' Gemma 3 with transformers' own attention (ours is registered there) and all that it rotates by."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        components: Any = self.component_mapping
        attention = native_attention(self.cfg)
        attention.submodules |= {norm: HeadNorm(name=norm) for norm in ("q_norm", "k_norm")}
        components["blocks"].submodules["attn"] = attention
        components["rotary_emb"] = Rotary("model.language_model.rotary_emb")
        components["projector"] = Projector("model.multi_modal_projector")
        components["projector"].submodules["norm"] = GeneralizedComponent(name="mm_soft_emb_norm")
        del components["vision_projector"]


def check(config: Any) -> None:
    """Raise UnsupportedModel, naming the setting, for a Gemma 3 configuration that is not understood."""
    text, vision = config.text_config, config.vision_config
    one_of("vision_config.model_type", vision.model_type, ("siglip_vision_model",))
    one_of("text_config.model_type", text.model_type, ("gemma3_text",))
    one_of("text_config.use_bidirectional_attention", bool(text.use_bidirectional_attention), (False,))
    for cap in ("final_logit_softcapping", "attn_logit_softcapping"):  # transformers reads neither with images
        one_of(f"text_config.{cap}", getattr(text, cap), (None,))
    if set(text.layer_types) != set(LAYERS):
        raise UnsupportedModel(
            f"mmlens knows Gemma 3 with local and global layers; text_config.layer_types is {text.layer_types}"
        )
    side, rest = divmod(vision.image_size, vision.patch_size)
    pooled = isqrt(config.mm_tokens_per_image)
    if rest or pooled**2 != config.mm_tokens_per_image or side % pooled:
        raise UnsupportedModel(
            f"mmlens knows patches that tile the picture and are pooled evenly to a square; {side} x {side} patches of "
            f"{vision.patch_size} on {vision.image_size} pixels, mm_tokens_per_image = {config.mm_tokens_per_image} do not"
        )


def settle(processor: Any, config: Any) -> None:
    """Raise UnsupportedModel where the processor's pictures or positions are not those of the model."""
    pixels = config.vision_config.image_size
    one_of("image_processor.size", dict(processor.image_processor.size), ({"height": pixels, "width": pixels},))
    one_of("processor.image_seq_length", processor.image_seq_length, (config.mm_tokens_per_image,))


def encode(processor: Any, text: str, media: Media) -> Row:
    """Return `text` with its images as one row; a missing placeholder is put in front of the text.

    Pan and scan is as the processor has it: off, unless `processor.images_kwargs["do_pan_and_scan"]` says otherwise.
    """
    images, words = list(media.images), processor.tokenizer
    text = with_placeholders(text, len(images), kind="image", token=processor.boi_token)
    encoded = processor(text=text, images=images or None, return_tensors="pt")
    tokens = encoded["input_ids"][0].tolist()
    grids = tuple(place(processor, image) for image in images)
    modality, medium = label(
        tokens,
        placeholders={words.image_token_id: "image"},
        lengths={"image": [len(place) for place in grids]},
        special=special_ids(words),
    )
    tower = {"pixel_values": encoded["pixel_values"]} if images else {}
    stream = {"token_type_ids": encoded["token_type_ids"][0].tolist()}
    return Row(text, tokens, modality, medium, tower, grids, media.all(), stream, entries=tile_entries(medium, grids))


def place(processor: Any, image: Image) -> Grid | Tiles:
    """Return where the positions of `image` lie on it: of the whole image, and then of the crops, where there are any."""
    side, (width, height) = isqrt(processor.image_seq_length), image.size
    whole = Grid(side, side, (0.0, 0.0, float(width), float(height)), image.size)
    parts = tuple(Grid(side, side, box, image.size) for box in crops(processor, width, height))
    return Tiles((whole, *parts), image.size) if parts else whole


def crops(processor: Any, width: int, height: int) -> list[Box]:
    """Return the parts of a picture that pan and scan shows once more, in the processor's order; none where it is off."""
    settings = {**vars(processor.image_processor), **getattr(processor, "images_kwargs", {})}
    if not settings.get("do_pan_and_scan"):
        return []
    longer, shorter = max(width, height), min(width, height)
    smallest = settings["pan_and_scan_min_crop_size"]
    if longer / shorter < settings["pan_and_scan_min_ratio_to_activate"]:
        return []
    count = max(2, min(longer // smallest, floor(longer / shorter + 0.5)))
    count = min(count, settings["pan_and_scan_max_num_crops"])
    step = -(-longer // count)
    if min(step, shorter) < smallest:
        return []
    parts = [(float(step * part), float(min(step * (part + 1), longer))) for part in range(count)]
    if width >= height:
        return [(start, 0.0, stop, float(height)) for start, stop in parts]
    return [(0.0, start, float(width), stop) for start, stop in parts]


FAMILY = Family(
    model_type="gemma3",
    model_class="Gemma3ForConditionalGeneration",
    takes=("image",),
    adapter=lambda config: Gemma3Adapter,
    renames=TOWER_NAMES,
    dead=TOWER_DEAD,
    check=check,
    encode=encode,
    settle=settle,
    live_layers=lambda config: {},  # the whole tower is read
)
