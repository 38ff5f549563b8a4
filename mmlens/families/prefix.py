"""Prefix models: any of several language models behind any of several vision towers and one linear projection.

The setting of LiMBeR (Merullo et al. 2023) and of Schwettmann et al. (2023): the pictures' features stand in front of
the text (or where the text says), and the language model has never seen a picture. `assemble` makes such a model of
its parts, `read_limber` reads the projections that LiMBeR publishes.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionModel,
    SiglipVisionModel,
)

from mmlens.families.family import Family, UnsupportedModel, label, with_placeholders
from mmlens.families.language import check_text, prepare_text, text_adapter
from mmlens.families.llava import grid
from mmlens.families.parts import Projector
from mmlens.families.prefix_model import PrefixConfig, PrefixModel, PrefixProcessor
from mmlens.families.towers import TOWER_RENAMES, TOWERS, VisionTower, check_tower, prepare_tower
from mmlens.inputs import Row
from mmlens.media import Media


def adapter(config: Any) -> type:
    """Return the language model's adapter, with the tower and the projection."""
    base: Any = text_adapter(config.text_config, "language_model")

    class PrefixAdapter(base):
        def __init__(self, cfg: Any) -> None:
            super().__init__(cfg)
            tower = VisionTower("vision_tower", config.vision_config, config.feature_layer)
            self.component_mapping |= {"vision_encoder": tower, "projector": Projector("projector")}

    return PrefixAdapter


def check(config: Any) -> None:
    """Raise UnsupportedModel, naming the setting, for a configuration that is not understood."""
    check_text(config.text_config)
    check_tower(config.vision_config)
    depth, layer = config.vision_config.num_hidden_layers, config.feature_layer
    if layer is not None and not (isinstance(layer, int) and -depth - 1 <= layer <= depth):
        raise UnsupportedModel(
            f"feature_layer is None (the tower's own output) or one of its {depth + 1} hidden states, got {layer!r}"
        )
    if config.drop_cls and not TOWERS[config.vision_config.model_type].cls:
        raise UnsupportedModel(f"a {config.vision_config.model_type} has no class token: drop_cls must be False")


def live_layers(config: Any) -> dict[str, int]:
    """Return how many of the tower's blocks reach the output; one more than it has where its own output is read."""
    chosen, depth = config.feature_layer, config.vision_config.num_hidden_layers
    return {"vision": depth + 1 if chosen is None else chosen if chosen >= 0 else depth + 1 + chosen}


def prepare(model: Any) -> None:
    """Change the transformers model where its code would hide something."""
    prepare_text(model.language_model)
    prepare_tower(model.vision_tower)


def encode(processor: Any, text: str, media: Media) -> Row:
    """Return `text` with its images as one row; a missing placeholder is put in front of the text."""
    images, token = list(media.images), processor.image_token
    text = with_placeholders(text, len(images), kind="image", token=token)
    encoded = processor(text=text, images=images or None, return_tensors="pt")
    tokens = encoded["input_ids"][0].tolist()
    grids = tuple(grid(processor, image) for image in images)
    modality, medium = label(
        tokens,
        placeholders={processor.image_token_id: "image"},
        lengths={"image": [len(grid) + processor.keeps_cls for grid in grids]},
        special=processor.tokenizer.all_special_ids,
    )
    tower = {"pixel_values": encoded["pixel_values"]} if images else {}
    places = tuple(None if processor.keeps_cls else grid for grid in grids)
    return Row(text, tokens, modality, medium, tower, places, media.all())


# ---------------------------------------------------------------- from parts


def assemble(
    language_model: nn.Module | str | Path,
    vision_tower: nn.Module | str | Path,
    projector: nn.Linear | Tensor | tuple[Tensor, Tensor | None],
    *,
    tokenizer: Any,
    image_processor: Any,
    feature_layer: int | None = None,
    drop_cls: bool = True,
    image_token: str = "<image>",
    dtype: torch.dtype | None = None,
) -> tuple[PrefixModel, PrefixProcessor]:
    """Return the model that has these parts, not copied, and its processor.

    Parts are loaded, or names or folders of what transformers loads. `projector` is the linear map from the tower's width
    to the language model's, or its weight [d_model, d_tower], or (weight, bias). Raises ValueError for one of another
    shape, UnsupportedModel for a tower that mmlens does not know.
    """
    options: dict[str, Any] = {"dtype": dtype or "auto"}
    language: Any = language_model
    if isinstance(language_model, (str, Path)):
        language = AutoModelForCausalLM.from_pretrained(language_model, **options)
    tower = _tower(vision_tower, options)
    if isinstance(tokenizer, (str, Path)):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    if isinstance(image_processor, (str, Path)):
        image_processor = AutoImageProcessor.from_pretrained(image_processor)
    linear = _linear(projector, tower.config.hidden_size, language.config.hidden_size)
    drop_cls = drop_cls and TOWERS[tower.config.model_type].cls
    config: Any = PrefixConfig(
        text_config=language.config, vision_config=tower.config, feature_layer=feature_layer, drop_cls=drop_cls
    )
    check(config)
    processor = PrefixProcessor(
        image_processor, tokenizer, patch_size=tower.config.patch_size, keeps_cls=_keeps_cls(config), image_token=image_token
    )
    config.image_token_id = processor.image_token_id
    with torch.device("meta"):  # the parts bring their weights
        model = PrefixModel(config)
    weights = next(language.parameters())
    model.language_model, model.vision_tower = language, tower
    model.projector = linear.to(weights.device, weights.dtype if dtype is None else dtype)
    if getattr(language, "generation_config", None) is not None:
        model.generation_config = language.generation_config
    return model.eval(), processor


def _keeps_cls(config: Any) -> bool:
    return TOWERS[config.vision_config.model_type].cls and not config.drop_cls


def _tower(tower: Any, options: dict[str, Any]) -> Any:
    """Return the vision tower alone, without the pooling that is not used."""
    if isinstance(tower, (str, Path)):
        kind = AutoConfig.from_pretrained(tower).model_type
        loader = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel}.get(kind.removesuffix("_vision_model"), AutoModel)
        tower = loader.from_pretrained(tower, **options)
    for inner in ("vision_model", "beit", "vit"):  # of a model that has more than the tower
        tower = getattr(tower, inner, tower)
    check_tower(tower.config)
    if getattr(tower, "pooler", None) is not None:
        tower.pooler = None
    return tower


def _linear(projector: Any, d_tower: int, d_model: int) -> nn.Linear:
    weight, bias = projector if isinstance(projector, tuple) else (projector, None)
    if isinstance(projector, nn.Linear):
        weight, bias = projector.weight, projector.bias
    if not isinstance(weight, Tensor):
        raise TypeError(f"a projector is an nn.Linear, its weight, or (weight, bias); got a {type(projector).__name__}")
    if tuple(weight.shape) != (d_model, d_tower) or (bias is not None and tuple(bias.shape) != (d_model,)):
        raise ValueError(
            f"a projector from this tower into this language model is [{d_model}, {d_tower}], with a bias [{d_model}]; "
            f"got {list(weight.shape)}" + ("" if bias is None else f" and {list(bias.shape)}")
        )
    linear = nn.Linear(d_tower, d_model, bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach())
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach())
    return linear


# ---------------------------------------------------------------- LiMBeR's files


def read_limber(path: str | Path, *, d_model: int | None = None, d_tower: int | None = None) -> nn.Linear:
    """Return the projection in a file that LiMBeR publishes (`limber_weights/*/proj.ckpt`), from tower to language model.

    Known of the format, from LiMBeR's code: it is what `torch.save` writes of the `state_dict` of one `nn.Linear`, so
    `weight` [d_model, d_tower] and `bias` [d_model]; 1024 to 4096 for its BEiT models. Not known, because the files could
    not be had here: the numbers' type (they are given as they are; training was in bfloat16), and whether a wrapper's
    prefix stands before the names (one is taken off). Behind the map LiMBeR has no norm, and dropout in training only.

    The tower of the BEiT models is `microsoft/beit-large-patch16-224-pt22k`, its own output without the class token (196
    positions: `feature_layer=None`); the language model is GPT-J 6B with GPT-2's tokenizer, the prefix stands first, and
    no token before it. LiMBeR's CLIP (RN50x16) and NF-ResNet towers are not in transformers.

    `d_model` and `d_tower` are checked where given. Raises FileNotFoundError, and ValueError for a file that holds
    something else; nothing in it is executed.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no LiMBeR projection at {path}: give the path of a proj.ckpt")
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is not a file of tensors alone, as torch.save writes a state_dict: {error}") from error
    tensors = {name: value for name, value in held.items() if isinstance(value, Tensor)} if isinstance(held, dict) else {}
    plain = {name.rpartition(".")[2]: value for name, value in tensors.items()}
    if len(tensors) != 2 or set(plain) != {"weight", "bias"}:
        got = ", ".join(sorted(map(str, held))[:6]) if isinstance(held, dict) else type(held).__name__
        raise ValueError(f"a LiMBeR projection is the state_dict of one linear map (weight, bias); {path} holds {got}")
    weight, bias = plain["weight"], plain["bias"]
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        shapes = f"{list(weight.shape)} and {list(bias.shape)}"
        raise ValueError(f"a linear map has a weight [d_model, d_tower] and a bias [d_model], got {shapes}")
    for name, wanted, got in (("d_model", d_model, weight.shape[0]), ("d_tower", d_tower, weight.shape[1])):
        if wanted not in (None, got):
            raise ValueError(f"{path} maps {weight.shape[1]} to {weight.shape[0]} numbers, which is not {name} = {wanted}")
    return _linear((weight, bias), weight.shape[1], weight.shape[0])


FAMILY = Family(
    model_type=PrefixConfig.model_type,
    model_class=PrefixModel,
    takes=("image",),
    adapter=adapter,
    renames=TOWER_RENAMES,
    check=check,
    encode=encode,
    live_layers=live_layers,
    prepare=prepare,
    first_position=None,
)
