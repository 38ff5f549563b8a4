"""LLaVA-OneVision: a SigLIP tower that sees a picture in tiles and a video's frames, a projector, and Qwen2."""

import math
import re
from typing import Any, ClassVar

import torch
from PIL.Image import Image
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from mmlens.families import llava
from mmlens.families.anyres import anyres, overview, tile_count, tile_edge
from mmlens.families.assembled import Assembled
from mmlens.families.family import Family, UnsupportedModel, check_features, label, one_of, special_ids, with_placeholders
from mmlens.grid import Grid, Tiles
from mmlens.inputs import Row
from mmlens.media import Media, Video


class OnevisionProcessor(Assembled):
    """LLaVA-OneVision's tokens and pixels, without torchvision."""

    name = "LlavaOnevisionProcessor"
    video_name = "LlavaOnevisionVideoProcessor"
    defaults: ClassVar[dict[str, Any]] = dict(
        num_image_tokens=None,
        vision_feature_select_strategy=None,
        image_token="<image>",
        video_token="<video>",
        vision_aspect_ratio="anyres_max_9",
    )
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
    num_image_tokens: int
    vision_aspect_ratio: str

    def __init__(self, image_processor: Any, tokenizer: Any, **settings: Any) -> None:
        super().__init__(image_processor, tokenizer, **settings)
        self.image_token = getattr(tokenizer, "image_token", self.settings["image_token"])
        self.video_token = getattr(tokenizer, "video_token", self.settings["video_token"])
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)

    def __call__(
        self, text: list[str], images: list[list[Image]] | None = None, videos: list[list[Image]] | None = None, **_: Any
    ) -> dict[str, Tensor]:
        """Return the tokens of one text and the pixels of its media, as transformers' processor names them."""
        made: dict[str, Tensor] = {}
        shown = images[0] if images else []
        if images:
            made.update(self.image_processor(images, return_tensors="pt"))
        if videos:
            made["pixel_values_videos"] = self.frames([frame for video in videos for frame in video])
            made["pixel_values_videos"] = made["pixel_values_videos"].unflatten(0, (len(videos), -1))
        instead = {
            self.image_token: [self.image_token * len(place(self, image, alone=len(shown) == 1)) for image in shown],
            self.video_token: [self.video_token * len(frames(self, Video(tuple(video)))) for video in videos or []],
        }
        return {**self.tokens(self.expand(text[0], instead)), **made}


def check(config: Any) -> None:
    """Raise UnsupportedModel, naming the setting, for a LLaVA-OneVision configuration that is not understood."""
    one_of("vision_config.model_type", config.vision_config.model_type, ("siglip_vision_model",))
    one_of("text_config.model_type", config.text_config.model_type, ("qwen2",))
    one_of("vision_feature_select_strategy", config.vision_feature_select_strategy, ("full",))
    if not isinstance(config.vision_feature_layer, int):
        raise UnsupportedModel(
            f"mmlens reads one tower layer; vision_feature_layer is {config.vision_feature_layer}: several are not supported"
        )
    one_of("text_config.use_sliding_window", getattr(config.text_config, "use_sliding_window", False), (False,))
    most_tiles(config.vision_aspect_ratio)


def most_tiles(vision_aspect_ratio: str) -> int:
    """Return how many tiles' positions a picture may have. Raises UnsupportedModel for another way of packing them."""
    found = re.fullmatch(r"anyres_max_([1-9]\d*)", vision_aspect_ratio)
    if found is None:
        raise UnsupportedModel(f"mmlens knows vision_aspect_ratio = anyres_max_N; this model has {vision_aspect_ratio!r}")
    return int(found[1])


def encode(processor: Any, text: str, media: Media) -> Row:
    """Return `text` with its pictures and videos as one row; missing placeholders are put in front, each on its own line.

    One picture is shown in tiles; of several, each is shown once. Videos of one row, and of rows together, have equally
    many frames. Raises ValueError where those of a row do not.
    """
    images, videos = list(media.images), list(media.videos)
    lengths = {len(video.frames) for video in videos}
    if len(lengths) > 1:
        raise ValueError(f"this model reads videos of equally many frames together, got {sorted(lengths)}: cut the longer")
    token = {"image": processor.image_token, "video": processor.video_token}
    for kind, count in (("video", len(videos)), ("image", len(images))):
        text = with_placeholders(text, count, kind=kind, token=token[kind], put=f"{token[kind]}\n")
    encoded = processor(
        text=[text],
        images=[images] if images else None,
        videos=[list(video.frames) for video in videos] or None,
        return_tensors="pt",
        **(dict(do_sample_frames=False) if videos else {}),
    )
    tokens = encoded["input_ids"][0].tolist()
    pictures = [place(processor, image, alone=len(images) == 1) for image in images]
    films = [frames(processor, video) for video in videos]
    modality, medium = label(
        tokens,
        placeholders={processor.image_token_id: "image", processor.video_token_id: "video"},
        lengths={"image": list(map(len, pictures)), "video": list(map(len, films))},
        special=special_ids(processor.tokenizer),
    )
    names = ("pixel_values", "image_sizes", "batch_num_images", "pixel_values_videos")
    tower = {name: encoded[name] for name in names if name in encoded}
    pinpoints, (edge, _) = processor.image_processor.image_grid_pinpoints, sizes(processor)
    tiles = [tile_count(image.size, pinpoints, edge=edge) if len(images) == 1 else 1 for image in images]
    entries = {
        "pixel_values": list(enumerate(tiles)),
        "pixel_values_videos": [(len(images) + index, len(video.frames)) for index, video in enumerate(videos)],
    }
    return Row(text, tokens, modality, medium, tower, (*pictures, *films), media.all(), entries=entries)


def place(processor: Any, image: Image, *, alone: bool) -> Tiles:
    """Return where the positions of a picture lie on it: in tiles where it is `alone`, else once, padded to a square."""
    edge, patch = sizes(processor)
    if alone:
        pinpoints = processor.image_processor.image_grid_pinpoints
        return anyres(image.size, pinpoints, edge=edge, patch=patch, most=most_tiles(processor.vision_aspect_ratio))
    side = max(image.size)
    square = overview((side, side), edge=edge, patch=patch)
    left, top = (float((side - length) // 2) for length in image.size)
    _, _, right, bottom = square.region
    cells = Grid(square.rows, square.columns, (-left, -top, right - left, bottom - top), image.size)
    return _ended([cells])


def frames(processor: Any, video: Video) -> Tiles:
    """Return where the positions of a video lie: each frame whole, its positions pooled in twos, a newline at the end."""
    edge, patch = sizes(processor)
    size = video.frames[0].size
    whole = overview(size, edge=edge, patch=patch)
    pooled = math.ceil(whole.rows / 2)
    return _ended([Grid(pooled, pooled, whole.region, size, frames=(at, at + 1)) for at in range(len(video.frames))])


def join(model: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return `kwargs` with pictures and videos already through the tower, together: transformers would run it twice."""
    if "pixel_values" not in kwargs or "pixel_values_videos" not in kwargs:
        return kwargs
    check_features(model)
    inner, config, videos = model.model, model.config, kwargs["pixel_values_videos"]
    alone = [count == 1 for count in kwargs["batch_num_images"].tolist() for _ in range(count)]
    pinpoints, edge = config.image_grid_pinpoints, config.vision_config.image_size
    counts = [
        tile_count((width, height), pinpoints, edge=edge) if one else 1
        for one, (height, width) in zip(alone, kwargs["image_sizes"].tolist(), strict=True)
    ]
    tiles = torch.cat([pixels[:count] for pixels, count in zip(kwargs["pixel_values"], counts, strict=True)])
    states = inner.vision_tower(torch.cat([tiles, videos.flatten(0, 1)]), output_hidden_states=True).hidden_states
    features = inner.multi_modal_projector(states[config.vision_feature_layer])
    pictures, _ = inner.pack_image_features(
        features[: len(tiles)].split(counts),
        kwargs["image_sizes"],
        image_newline=inner.image_newline,
        vision_aspect_ratio=config.vision_aspect_ratio,
    )
    films = inner.apply_pooling(features[len(tiles) :]).unflatten(0, videos.shape[:2]).flatten(1, 2)
    films = torch.cat([films, inner.image_newline.expand(len(films), 1, -1).to(films)], dim=1)
    outputs = {"image": BaseModelOutputWithPooling(pooler_output=pictures)}  # pyright: ignore[reportArgumentType]
    outputs["video"] = BaseModelOutputWithPooling(pooler_output=films)
    gone = ("pixel_values", "pixel_values_videos", "image_sizes", "batch_num_images")
    return {**{name: value for name, value in kwargs.items() if name not in gone}, "mm_encoder_outputs": outputs}


def sizes(processor: Any) -> tuple[int, int]:
    """Return how many pixels wide a tile and a patch are. Raises UnsupportedModel where settings leave that open."""
    edge, count = tile_edge(processor.image_processor), math.isqrt(processor.num_image_tokens)
    patches = [patch for patch in range(1, edge + 1) if edge // patch == count]
    if len(patches) != 1 or count**2 != processor.num_image_tokens:
        raise UnsupportedModel(f"num_image_tokens = {processor.num_image_tokens} does not say how a tile of {edge} is cut")
    return edge, patches[0]


def _ended(cells: list[Grid]) -> Tiles:
    """Return these grids with a newline behind them."""
    last = cells[-1]
    return Tiles((*cells, Grid(1, 0, last.region, last.size, newline=True)), last.size)


FAMILY = Family(
    model_type="llava_onevision",
    model_class="LlavaOnevisionForConditionalGeneration",
    takes=("image", "video"),
    adapter=lambda config: llava.LlavaAdapter,
    renames=llava.FAMILY.renames,
    dead=llava.FAMILY.dead,
    read_only=llava.FAMILY.read_only,
    check=check,
    encode=encode,
    live_layers=llava.live_layers,
    load_processor=OnevisionProcessor.load,
    join=join,
)
