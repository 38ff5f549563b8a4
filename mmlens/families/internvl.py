"""InternVL (transformers' own): a tower with layer scale that sees tiles, a pixel-shuffle projector, Qwen2, Qwen3 or Llama.

What a sublayer of the tower writes is multiplied, unit by unit, before it is added to the stream: `hook_attn_out` and
`hook_mlp_out` of `vision.blocks.{l}` are what is added, `attn.hook_out` and `mlp.hook_out` what it is made of. Where
queries and keys are normed, `attn.hook_q` and `attn.hook_k` are seen before that.
"""

import math
import re
from itertools import chain, repeat
from typing import Any, ClassVar

import torch
from PIL.Image import Image
from torch import Tensor, nn
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas
from transformers.models.internvl.modeling_internvl import InternVLVisionLayer
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from mmlens.families.assembled import Assembled
from mmlens.families.family import Family, UnsupportedModel, label, one_of, tile_entries, with_placeholders
from mmlens.families.llava import LlavaAdapter
from mmlens.families.parts import Projector, TowerBlock, heads, mlp, native_attention
from mmlens.grid import Grid, Tiles
from mmlens.inputs import Row
from mmlens.media import Media, Video


class Scale(nn.Module):
    """Multiplies by a layer's own parameter: what `prepare` makes a module of, so that it has an output."""

    def __init__(self, layer: nn.Module, parameter: str) -> None:
        super().__init__()
        self.parameter = parameter
        object.__setattr__(self, "layer", layer)  # no submodule: the parameter stays where it was

    def forward(self, written: Tensor) -> Tensor:
        """Return what is added to the stream."""
        return getattr(self.layer, self.parameter) * written


class ScaledLayer(InternVLVisionLayer):
    """transformers' layer with its two scales as modules."""

    attn_scale: nn.Module
    mlp_scale: nn.Module

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the stream behind this layer, as transformers computes it."""
        written, _ = self.attention(self.layernorm_before(hidden_states))
        hidden_states = self.attn_scale(written) + hidden_states
        return self.mlp_scale(self.dropout(self.mlp(self.layernorm_after(hidden_states)))) + hidden_states


class ScaledBlock(TowerBlock):
    """A tower's block whose sublayers are scaled before they are added."""

    hook_aliases = TowerBlock.hook_aliases | {"hook_attn_out": "attn_scale.hook_out", "hook_mlp_out": "mlp_scale.hook_out"}

    def __init__(self, config: Any) -> None:
        sizes = heads(config.num_attention_heads, config.hidden_size)
        attn = native_attention(sizes, "attention", o="projection_layer")
        super().__init__(
            "encoder.layer", ln1="layernorm_before", attn=attn, ln2="layernorm_after", mlp=mlp(sizes, "fc1", "fc2")
        )
        self.submodules |= {name: GeneralizedComponent(name=name) for name in ("attn_scale", "mlp_scale")}


class Tower(GeneralizedComponent):
    """The ViT: `hook_embed` is what enters the blocks, `ln_post.hook_out` what is shuffled and projected."""

    hook_aliases = {"hook_embed": "embed.hook_out"}  # noqa: RUF012 (TransformerLens declares it so)

    def __init__(self, config: Any) -> None:
        parts = {"embed": GeneralizedComponent("embeddings"), "blocks": ScaledBlock(config)}
        super().__init__("model.vision_tower", submodules={**parts, "ln_post": GeneralizedComponent("layernorm")})

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        """Return what transformers' tower returns; the pixels first, so that `hook_in` has them."""
        return super().forward(pixel_values, **kwargs)


def adapter(config: Any) -> type[LlavaAdapter]:
    """Return the adapter for a model of this configuration: LLaVA's, with another tower."""

    class InternVLAdapter(LlavaAdapter):
        def __init__(self, cfg: Any) -> None:
            super().__init__(cfg)
            components: Any = self.component_mapping
            del components["vision_encoder"]
            components["vision"] = Tower(config.vision_config)
            components["projector"] = Projector("model.multi_modal_projector", into="linear_1", out="linear_2")
            components["projector"].submodules["norm"] = GeneralizedComponent("layer_norm")

    return InternVLAdapter


def prepare(model: Any) -> None:
    """Give each of the tower's layers its two scales as modules, which have an output to hook."""
    for layer in model.model.vision_tower.encoder.layer:
        layer.attn_scale, layer.mlp_scale = Scale(layer, "lambda_1"), Scale(layer, "lambda_2")
        layer.__class__ = ScaledLayer


class InternVLProcessor(Assembled):
    """InternVL's tokens and pixels, without torchvision."""

    name = "InternVLProcessor"
    video_name = "InternVLVideoProcessor"
    defaults: ClassVar[dict[str, Any]] = dict(image_seq_length=256)
    video_defaults: ClassVar[dict[str, Any]] = dict(
        size={"height": 384, "width": 384},
        resample=3,
        do_resize=True,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=OPENAI_CLIP_MEAN,
        image_std=OPENAI_CLIP_STD,
    )
    images_kwargs: ClassVar[dict[str, Any]] = dict(crop_to_patches=True)
    image_seq_length: int

    def __init__(self, image_processor: Any, tokenizer: Any, **settings: Any) -> None:
        super().__init__(image_processor, tokenizer, **settings)
        self.image_token, self.video_token = tokenizer.context_image_token, tokenizer.video_token
        self.image_token_id = tokenizer.context_image_token_id

    def __call__(
        self, text: list[str], images: list[list[Image]] | None = None, videos: list[list[Image]] | None = None, **_: Any
    ) -> dict[str, Tensor]:
        """Return the tokens of one text and the pixels of its media, in the order of the text."""
        shown: dict[str, list[Tensor]] = {self.image_token: [], self.video_token: []}
        if images:
            made = self.image_processor(images, return_tensors="pt", **self.images_kwargs)
            shown[self.image_token] = list(made["pixel_values"].split([int(count) for count in made["num_patches"]]))
        shown[self.video_token] = [self.frames(video) for video in videos or []]
        instead = {
            self.image_token: [self._marked(len(tiles)) for tiles in shown[self.image_token]],
            self.video_token: [
                "\n".join(f"Frame{number + 1}: {self._marked(1)}" for number in range(len(frames)))
                for frames in shown[self.video_token]
            ],
        }
        waiting = {token: iter(pixels) for token, pixels in shown.items()}
        ordered = [next(waiting[token]) for token in in_order(self, text[0])]
        pixels = {"pixel_values": _joined(ordered)} if ordered else {}
        return {**self.tokens(self.expand(text[0], instead)), **pixels}

    def _marked(self, tiles: int) -> str:
        words = self.tokenizer
        return f"{words.start_image_token}{self.image_token * (self.image_seq_length * tiles)}{words.end_image_token}"


def in_order(processor: Any, text: str) -> list[str]:
    """Return the placeholders of a text in their order."""
    return re.findall(f"{re.escape(processor.image_token)}|{re.escape(processor.video_token)}", text)


def check(config: Any) -> None:
    """Raise UnsupportedModel, naming the setting, for an InternVL configuration that is not understood."""
    text, vision = config.text_config, config.vision_config
    one_of("vision_config.model_type", vision.model_type, ("internvl_vision",))
    one_of("text_config.model_type", text.model_type, ("qwen2", "qwen3", "llama"))
    one_of("vision_feature_select_strategy", config.vision_feature_select_strategy, ("default",))
    if not isinstance(config.vision_feature_layer, int):
        raise UnsupportedModel(
            f"mmlens reads one tower layer; vision_feature_layer is {config.vision_feature_layer}: several are not supported"
        )
    one_of("text_config.use_sliding_window", getattr(text, "use_sliding_window", False), (False,))
    sides = [size // patch for size, patch in zip(vision.image_size, vision.patch_size, strict=True)]
    whole = all(size % patch == 0 for size, patch in zip(vision.image_size, vision.patch_size, strict=True))
    if not whole or len(set(sides)) > 1 or (sides[0] * config.downsample_ratio) % 1:
        raise UnsupportedModel(
            f"mmlens knows square tiles of whole patches that are shuffled evenly; vision_config has image_size = "
            f"{vision.image_size}, patch_size = {vision.patch_size}, with downsample_ratio = {config.downsample_ratio}"
        )


def live_layers(config: Any) -> dict[str, int]:
    """Return how many of the tower's blocks reach the output: all, unless an earlier layer is asked for."""
    chosen, depth = config.vision_feature_layer, config.vision_config.num_hidden_layers
    return {} if chosen == -1 else {"vision": chosen if chosen >= 0 else depth + 1 + chosen}


def encode(processor: Any, text: str, media: Media) -> Row:
    """Return `text` with its pictures and videos as one row; missing placeholders are put in front, each on its own line."""
    images, videos = list(media.images), list(media.videos)
    for kind, count in (("video", len(videos)), ("image", len(images))):
        token = getattr(processor, f"{kind}_token")
        text = with_placeholders(text, count, kind=kind, token=token, put=f"{token}\n")
    encoded = processor(
        text=[text],
        images=[images] if images else None,
        videos=[list(video.frames) for video in videos] or None,
        return_tensors="pt",
        **(dict(do_sample_frames=False) if videos else {}),
    )
    tokens = encoded["input_ids"][0].tolist()
    pictures = [place(processor, image) for image in images]
    films = [frames(processor, video) for video in videos]
    # Pictures and frames share a token: which is which follows from their order in the text.
    lengths = {processor.image_token: map(len, pictures), processor.video_token: map(len, films)}
    kinds = [(-1 if token == processor.image_token else -2, next(lengths[token])) for token in in_order(processor, text)]
    kind = chain.from_iterable(repeat(*one) for one in kinds)
    modality, medium = label(
        [next(kind, -1) if token == processor.image_token_id else token for token in tokens],
        placeholders={-1: "image", -2: "video"},
        lengths={"image": list(map(len, pictures)), "video": list(map(len, films))},
        special=processor.tokenizer.all_special_ids,
    )
    tower = {"pixel_values": encoded["pixel_values"]} if images or videos else {}
    places = (*pictures, *films)
    return Row(text, tokens, modality, medium, tower, places, media.all(), entries=tile_entries(medium, places))


def place(processor: Any, image: Image) -> Grid | Tiles:
    """Return where the positions of a picture lie on it: its tiles row by row, then all of it once more.

    One tile alone is the whole picture. Raises UnsupportedModel for a way of cutting that is not understood.
    """
    settings = processor.image_processor
    one_of("do_resize", settings.do_resize, (True,))
    size = settings.size
    side, (width, height) = _side(processor), image.size
    rows, columns = 1, 1
    if processor.images_kwargs.get("crop_to_patches", settings.crop_to_patches) and settings.max_patches > 1:
        tile = (size["height"], size["width"])
        columns, rows = get_optimal_tiled_canvas((height, width), tile, settings.min_patches, settings.max_patches)
    parts = [
        (width * column / columns, height * row / rows, width * (column + 1) / columns, height * (row + 1) / rows)
        for row in range(rows)
        for column in range(columns)
    ]
    tiles = [Grid(side, side, part, image.size) for part in parts]
    whole = Grid(side, side, (0.0, 0.0, float(width), float(height)), image.size)
    return Tiles((*tiles, whole), image.size) if len(tiles) > 1 else whole


def frames(processor: Any, video: Video) -> Tiles:
    """Return where the positions of a video lie: each frame whole."""
    side, size = _side(processor), video.frames[0].size
    region = (0.0, 0.0, float(size[0]), float(size[1]))
    return Tiles(tuple(Grid(side, side, region, size, frames=(at, at + 1)) for at in range(len(video.frames))), size)


def _side(processor: Any) -> int:
    """Return how many positions wide and high a tile is."""
    side = math.isqrt(processor.image_seq_length)
    one_of("image_seq_length", processor.image_seq_length, (side**2,))
    return side


def _joined(pixels: list[Tensor]) -> Tensor:
    """Return tiles and frames one after the other. Raises UnsupportedModel where they are of different sizes."""
    shapes = {tuple(one.shape[1:]) for one in pixels}
    if len(shapes) > 1:
        raise UnsupportedModel(f"mmlens knows tiles and frames of one size; this processor makes {sorted(shapes)}")
    return torch.cat(pixels)


FAMILY = Family(
    model_type="internvl",
    model_class="InternVLForConditionalGeneration",
    takes=("image", "video"),
    adapter=adapter,
    check=check,
    encode=encode,
    live_layers=live_layers,
    load_processor=InternVLProcessor.load,
    prepare=prepare,
)
