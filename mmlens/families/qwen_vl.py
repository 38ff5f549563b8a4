"""What the Qwen-VL families share: pictures and videos in their own sizes through one packed tower, and where they lie.

The tower reads all pictures (then all videos) of a run as one row of patches, so its points have no batch axis:
`[patch, ...]`, and `[1, patch, head, d_head]` and `[1, head, patch, patch]` where there are heads. Patches that lie in
different pictures, frames or windows do not see each other. `merge x merge` patches become one position of the stream.
"""

import math
from typing import Any

import torch
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.supported_architectures.qwen2_5_vl import Qwen2_5_VLArchitectureAdapter

from mmlens.families.family import check_features, label, special_ids, with_placeholders
from mmlens.families.parts import FusedAttention, Projector, TowerBlock, heads, native_attention
from mmlens.grid import Grid, Tiles
from mmlens.inputs import Row
from mmlens.media import Media, Video

START, END = "<|vision_start|>", "<|vision_end|>"
FRAMES_A_SECOND = 2.0  # what Qwen's models are trained on: the rate of a video that does not say its own


class Tower(GeneralizedComponent):
    """The vision tower; `hook_embed` is its patches' embedding, in the order of the pictures."""

    hook_aliases = {"hook_embed": "patch_embed.hook_out"}  # noqa: RUF012 (TransformerLens declares it so)

    def __init__(self, blocks: TowerBlock) -> None:
        parts = {"patch_embed": GeneralizedComponent(name="patch_embed"), "encoder_layers": blocks}
        super().__init__("model.visual", submodules=parts)


class QwenVLAdapter(Qwen2_5_VLArchitectureAdapter):
    """TransformerLens' Qwen2.5-VL with transformers' own attention, a whole tower and the projector's neurons."""

    required_libraries: list[str] = []  # noqa: RUF012 (its processor would need torchvision; ours does not)

    def __init__(self, cfg: Any, *, tower: TowerBlock, projector: Projector) -> None:
        super().__init__(cfg)
        components: Any = self.component_mapping
        components["blocks"].submodules["attn"] = native_attention(self.cfg)
        del components["vision_projector"]
        components["vision_encoder"], components["projector"] = Tower(tower), projector


def block(vision: Any, width: int, mlp: Any) -> TowerBlock:
    """Return one block of the tower of the configuration `vision`, `width` wide."""
    attn = FusedAttention(heads(vision.num_heads, width), "attn", qkv="qkv", o="proj")
    return TowerBlock("blocks", ln1="norm1", attn=attn, ln2="norm2", mlp=mlp)


RENAMES = {"vision_encoder.encoder_layers.": "vision.blocks.", "vision_encoder.": "vision."}
READ_ONLY = {"vision.hook_out": "projector.hook_in"}


def encode(processor: Any, text: str, media: Media) -> Row:
    """Return `text` with its images and videos as one row; missing placeholders are put in front, images first.

    Every frame that is given is shown, two at a time (an odd one out twice); a video without a rate counts as two frames a
    second.
    """
    images, videos = list(media.images), list(media.videos)
    for kind, token, count in (
        ("video", processor.video_token, len(videos)),
        ("image", processor.image_token, len(images)),
    ):
        text = with_placeholders(text, count, kind=kind, token=token, put=f"{START}{token}{END}")
    merge, together = processor.image_processor.merge_size, processor.video_processor.temporal_patch_size
    options: dict[str, Any] = {"images": images} if images else {}
    if videos:
        options |= {
            "videos": [[*video.frames, *video.frames[-1:] * (together - len(video.frames))] for video in videos],
            "video_metadata": [_metadata(video) for video in videos],
            "do_sample_frames": False,
        }
    encoded = processor(text=[text], return_tensors="pt", **options)
    tokens = encoded["input_ids"][0].tolist()
    seen = [
        _grid(shape, image.size, merge)
        for image, shape in zip(images, encoded.get("image_grid_thw", torch.empty(0)).tolist(), strict=True)
    ]
    shown = [
        _tiles(shape, video, merge, together)
        for video, shape in zip(videos, encoded.get("video_grid_thw", torch.empty(0)).tolist(), strict=True)
    ]
    modality, medium = label(
        tokens,
        placeholders={processor.image_token_id: "image", processor.video_token_id: "video"},
        lengths={"image": list(map(len, seen)), "video": list(map(len, shown))},
        special=special_ids(processor.tokenizer),
    )
    fed = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts")
    tower = {name: torch.as_tensor(encoded[name]) for name in fed if name in encoded}
    stream = {"mm_token_type_ids": encoded["mm_token_type_ids"][0].tolist()}
    entries = {
        f"pixel_values{kind}": [(first + number, math.prod(shape)) for number, shape in enumerate(tower[grids].tolist())]
        for kind, grids, first in (("", "image_grid_thw", 0), ("_videos", "video_grid_thw", len(images)))
        if grids in tower
    }
    return Row(text, tokens, modality, medium, tower, (*seen, *shown), media.all(), stream, entries=entries)


def _metadata(video: Video) -> dict[str, Any]:
    count = len(video.frames)
    return {"total_num_frames": count, "fps": video.fps or FRAMES_A_SECOND, "frames_indices": list(range(count))}


def _grid(shape: list[int], size: tuple[int, int], merge: int, frames: tuple[int, int] | None = None) -> Grid:
    """Return where the positions of one picture lie: it is shown whole, only its sides are stretched to whole patches."""
    region = (0.0, 0.0, float(size[0]), float(size[1]))
    return Grid(shape[1] // merge, shape[2] // merge, region, size, frames=frames)


def _tiles(shape: list[int], video: Video, merge: int, together: int) -> Tiles:
    size, count = video.frames[0].size, len(video.frames)
    pairs = [(first, min(first + together, count)) for first in range(0, shape[0] * together, together)]
    return Tiles(tuple(_grid(shape, size, merge, pair) for pair in pairs), size)


def join(model: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return `kwargs` with pictures and videos already through the tower, together: transformers would run it twice."""
    if "pixel_values" not in kwargs or "pixel_values_videos" not in kwargs:
        return kwargs
    check_features(model)
    pictures = len(kwargs["image_grid_thw"])
    seen = model.model.get_image_features(
        torch.cat([kwargs["pixel_values"], kwargs["pixel_values_videos"]]),
        torch.cat([kwargs["image_grid_thw"], kwargs["video_grid_thw"]]),
        return_dict=True,
    )
    parts = {}
    for kind, chosen in (("image", slice(pictures)), ("video", slice(pictures, None))):
        features: dict[str, Any] = {"pooler_output": seen.pooler_output[chosen]}
        if (stacked := getattr(seen, "deepstack_features", None)) is not None:
            features["deepstack_features"] = [level[chosen] for level in stacked]
        parts[kind] = type(seen)(**features)
    rest = {name: value for name, value in kwargs.items() if name not in ("pixel_values", "pixel_values_videos")}
    return {**rest, "mm_encoder_outputs": parts}


def frame_size(frames: Any, count: int, height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) in which a video's frames are shown: each within the pixels that one may have."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    factor, limits = frames.patch_size * frames.merge_size, frames.size
    most = limits["longest_edge"]
    if frames.cap_pixels_per_frame:
        budget = int(frames.max_video_tokens * factor * factor * 0.9)
        share = budget * frames.temporal_patch_size // count
        most = max(min(most, share), int(limits["shortest_edge"] * 1.05))
    return smart_resize(height, width, factor=factor, min_pixels=limits["shortest_edge"], max_pixels=most)


VIDEO_DEFAULTS: dict[str, Any] = {
    "video_processor_type": "Qwen2VLVideoProcessor",
    "size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768},
    "resample": 3,
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_convert_rgb": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "cap_pixels_per_frame": None,
    "max_video_tokens": 128000,
}
