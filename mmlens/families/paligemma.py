"""PaliGemma and PaliGemma 2: a SigLIP tower, one linear map, and a Gemma or Gemma 2 that sees its whole prompt at once."""

from math import isqrt
from typing import Any

from PIL.Image import Image
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.model_bridge.generalized_components import SiglipVisionEncoderBridge
from transformer_lens.model_bridge.supported_architectures.gemma1 import Gemma1ArchitectureAdapter
from transformer_lens.model_bridge.supported_architectures.gemma2 import Gemma2ArchitectureAdapter

from mmlens.families.family import Family, label, one_of, special_ids, with_placeholders
from mmlens.families.parts import TOWER_DEAD, TOWER_NAMES, Projector, native_attention
from mmlens.grid import Grid
from mmlens.inputs import Row
from mmlens.media import Media

TEXT: dict[str, type[ArchitectureAdapter]] = {"gemma": Gemma1ArchitectureAdapter, "gemma2": Gemma2ArchitectureAdapter}


def adapter(config: Any) -> type[ArchitectureAdapter]:
    """Return TransformerLens' Gemma of the model's generation, inside PaliGemma: with its tower and its projector."""
    text = config.text_config

    class PaliGemmaAdapter(TEXT[text.model_type]):
        def __init__(self, cfg: Any) -> None:
            super().__init__(cfg)
            self._reprefix_components("model.", "model.language_model.")
            self._extract_vision_dims(cfg)
            self.cfg.is_multimodal = True
            self.cfg.output_logits_soft_cap = getattr(text, "final_logit_softcapping", None) or -1.0
            components: Any = self.component_mapping
            components["blocks"].submodules["attn"] = native_attention(self.cfg)
            components["vision_encoder"] = SiglipVisionEncoderBridge(name="model.vision_tower", config=self.cfg)
            components["projector"] = Projector("model.multi_modal_projector")

    return PaliGemmaAdapter


def check(config: Any) -> None:
    """Raise UnsupportedModel, naming the setting, for a PaliGemma configuration that is not understood."""
    text, vision = config.text_config, config.vision_config
    one_of("vision_config.model_type", vision.model_type, ("siglip_vision_model",))
    one_of("text_config.model_type", text.model_type, tuple(TEXT))
    one_of("text_config.use_bidirectional_attention", text.use_bidirectional_attention, (True,))
    one_of("vision_config.image_size % vision_config.patch_size", vision.image_size % vision.patch_size, (0,))


def settle(processor: Any, config: Any) -> None:
    """Raise UnsupportedModel where the processor's pictures or positions are not those of the model."""
    vision = config.vision_config
    size, patches = {"height": vision.image_size, "width": vision.image_size}, vision.image_size // vision.patch_size
    one_of("image_processor.size", dict(processor.image_processor.size), (size,))
    one_of("processor.image_seq_length", processor.image_seq_length, (patches**2,))


def encode(processor: Any, text: str, media: Media) -> Row:
    """Return `text` with its images as one row, as the processor lays it out: images, <bos>, the text, and a line's end.

    A missing placeholder is put in front. Text alone, which the processor refuses, is laid out alike.
    """
    images, words = list(media.images), processor.tokenizer
    text = with_placeholders(text, len(images), kind="image", token=processor.image_token)
    if images:
        encoded = processor(text=text, images=[images], return_tensors="pt")
    else:
        encoded = words(f"{words.bos_token}{text}\n", return_token_type_ids=True, return_tensors="pt")
    tokens = encoded["input_ids"][0].tolist()
    grids = tuple(grid(processor, image) for image in images)
    modality, medium = label(
        tokens,
        placeholders={processor.image_token_id: "image"},
        lengths={"image": [len(grid) for grid in grids]},
        special=special_ids(words),
    )
    tower = {"pixel_values": encoded["pixel_values"]} if images else {}
    stream = {"token_type_ids": encoded["token_type_ids"][0].tolist()}
    return Row(text, tokens, modality, medium, tower, grids, media.all(), stream)


def grid(processor: Any, image: Image) -> Grid:
    """Return where the positions of `image` lie on it: the picture is resized whole, whatever its shape."""
    side = isqrt(processor.image_seq_length)
    return Grid(side, side, (0.0, 0.0, float(image.size[0]), float(image.size[1])), image.size)


FAMILY = Family(
    model_type="paligemma",
    model_class="PaliGemmaForConditionalGeneration",
    takes=("image",),
    adapter=adapter,
    renames=TOWER_NAMES,
    dead=TOWER_DEAD,
    check=check,
    encode=encode,
    settle=settle,
    live_layers=lambda config: {},  # the whole tower is read
    first_position=1,
    answer={"token_type_ids": 1},  # what follows the prompt is read in order
)
