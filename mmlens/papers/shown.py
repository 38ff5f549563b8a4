"""What the first two papers look at: pictures, what is on them and where, and what people say of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from mmlens.organisms.pictoworld import Scene


@dataclass(frozen=True, eq=False)
class Shown:
    """A picture (PIL, or a file), the pixels of what is on it by name, and what people say of it.

    `objects` and `captions` may be empty: what needs them then leaves the picture out, and says how many had them.
    """

    image: Any
    objects: Mapping[str, Bool[Tensor, "height width"]] = field(default_factory=dict)
    captions: tuple[str, ...] = ()
    id: str = ""


def from_pictoworld(scenes: Sequence[Scene]) -> list[Shown]:
    """Return scenes of Pictoworld with their exact masks and their own caption."""
    return [
        Shown(
            scene.image,
            {one.noun: torch.from_numpy(np.asarray(one.mask)) for one in scene.objects},
            (scene.caption,),
            "/".join(map(str, scene.seed)),
        )
        for scene in scenes
    ]


def from_coco(folder: str | Path, *, split: str = "val2017", n: int | None = None, seed: int = 0) -> list[Shown]:
    """Return `n` pictures of COCO (default: all of a split) with the masks of categories that they show once.

    `folder` has `annotations/instances_{split}.json` and, if captions are wanted, `annotations/captions_{split}.json`, and
    pictures in a folder named as the split. A category with several objects in a picture, or a crowd, is left out there, as
    Schwettmann et al. 2023 do (methods A7). `seed` draws which pictures. Raises ImportError without pycocotools (an extra),
    FileNotFoundError where the annotations are not there.
    """
    try:
        coco: Any = import_module("pycocotools.coco")
    except ImportError as error:
        raise ImportError('COCO is read by pycocotools, an extra: pip install "mmlens[coco]"') from error
    root = Path(folder)
    files = {kind: root / "annotations" / f"{kind}_{split}.json" for kind in ("instances", "captions")}
    if not files["instances"].is_file():
        raise FileNotFoundError(f"COCO's annotations are looked for at {files['instances']}, and there is no such file")
    instances = coco.COCO(files["instances"])
    captions = coco.COCO(files["captions"]) if files["captions"].is_file() else None
    names = {one["id"]: one["name"] for one in instances.loadCats(instances.getCatIds())}
    ids = sorted(instances.getImgIds())
    order = np.random.default_rng(seed).permutation(len(ids))[:n]
    return [_picture(root / split, instances, captions, names, ids[place]) for place in sorted(order.tolist())]


def _picture(folder: Path, instances: Any, captions: Any, names: Mapping[int, str], image_id: int) -> Shown:
    """Return one picture; it is read from its file only when it is looked at."""
    found: dict[str, list[Any]] = {}
    for one in instances.loadAnns(instances.getAnnIds(imgIds=[image_id])):
        found.setdefault(names[one["category_id"]], []).append(one)
    single = {name: ones[0] for name, ones in found.items() if len(ones) == 1 and not ones[0].get("iscrowd")}
    said = [] if captions is None else captions.loadAnns(captions.getAnnIds(imgIds=[image_id]))
    return Shown(
        folder / instances.loadImgs([image_id])[0]["file_name"],
        {name: torch.from_numpy(instances.annToMask(one)).bool() for name, one in single.items()},
        tuple(one["caption"] for one in said),
        str(image_id),
    )


def opened(image: Any) -> Image.Image:
    """Return a picture, read from its file where it is a path."""
    return image if isinstance(image, Image.Image) else Image.open(image).convert("RGB")
