"""Qwen2-Audio: a Whisper-like tower over a window of mel frames, a linear projector, and a Qwen2 language model."""

from typing import Any

import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.supported_architectures.qwen2_audio import Qwen2AudioArchitectureAdapter
from transformers import Qwen2AudioConfig

from mmlens.families.family import Family, label, one_of, special_ids, with_placeholders
from mmlens.families.parts import Projector, TowerBlock, heads, mlp, native_attention
from mmlens.grid import Timeline
from mmlens.inputs import MODALITIES, PAD, Row
from mmlens.media import Media, Sound

FRAMES_PER_POSITION = 4  # transformers' tower: a convolution of stride 2, then the mean of every 2


class AudioTower(GeneralizedComponent):
    """The tower: `conv1.hook_in` is the mel spectrogram, `hook_embed` what enters the blocks, `ln_final` behind the pooling.

    Positions are added to the convolutions' output by no module of their own, so `hook_embed` fires where the first block
    is entered, before the block's own hooks.
    """

    def __init__(self, name: str, config: Any) -> None:
        sizes = heads(config.encoder_attention_heads, config.d_model)
        blocks = TowerBlock(
            "layers",
            ln1="self_attn_layer_norm",
            attn=native_attention(sizes, o="out_proj"),
            ln2="final_layer_norm",
            mlp=mlp(sizes, "fc1", "fc2", name=None),
        )
        parts: dict[str, GeneralizedComponent] = {part: GeneralizedComponent(name=part) for part in ("conv1", "conv2")}
        parts |= {"encoder_layers": blocks, "ln_final": GeneralizedComponent(name="layer_norm")}
        super().__init__(name, submodules=parts)
        self.hook_embed = HookPoint()

    def validate_after_setup(self, skipped: Any) -> None:
        """Let `hook_embed` see what enters the first block; TransformerLens calls this once the parts are in place."""
        self.encoder_layers[0].hook_in.add_hook(lambda stream, hook: self.hook_embed(stream), is_permanent=True)


def adapter(config: Any) -> type[Qwen2AudioArchitectureAdapter]:
    """Return TransformerLens' Qwen2-Audio with transformers' own attention, and with a tower that is open."""

    class Adapter(Qwen2AudioArchitectureAdapter):
        def __init__(self, cfg: Any) -> None:
            super().__init__(cfg)
            components: Any = self.component_mapping
            components["blocks"].submodules["attn"] = native_attention(self.cfg)
            components["audio_encoder"] = AudioTower("model.audio_tower", config.audio_config)
            components["projector"] = Projector("model.multi_modal_projector")
            del components["audio_projector"]

    return Adapter


def check(config: Qwen2AudioConfig) -> None:
    """Raise UnsupportedModel, naming the setting, for a Qwen2-Audio configuration that is not understood."""
    audio: Any = config.audio_config
    text: Any = config.text_config
    one_of("audio_config.model_type", audio.model_type, ("qwen2_audio_encoder",))
    one_of("audio_config.activation_function", audio.activation_function, ("gelu",))
    one_of("audio_config.scale_embedding", audio.scale_embedding, (False,))
    one_of("text_config.model_type", text.model_type, ("qwen2",))


def encode(processor: Any, text: str, media: Media) -> Row:
    """Return `text` with its sounds as one row; a missing placeholder is put in front, between its begin and end tokens.

    Raises ValueError for a sound of another rate than the model's, and for one that is too long or too short to be heard
    whole.
    """
    sounds, token = list(media.audio), processor.audio_token
    put = f"{processor.audio_bos_token}{token}{processor.audio_eos_token}"
    text = with_placeholders(text, len(sounds), kind="sound", token=token, put=put)
    grids = tuple(timeline(processor, sound) for sound in sounds)
    options: dict[str, Any] = {"return_tensors": "pt"}
    if sounds:
        options |= {
            "audio": [sound.samples for sound in sounds],
            "sampling_rate": processor.feature_extractor.sampling_rate,
        }
    encoded = processor(text=text, **options)
    tokens = encoded["input_ids"][0].tolist()
    modality, medium = label(
        tokens,
        placeholders={processor.audio_token_id: "audio"},
        lengths={"audio": [len(grid) for grid in grids]},
        special=special_ids(processor.tokenizer),
    )
    tower = {name: encoded[name] for name in ("input_features", "feature_attention_mask") if sounds}
    return Row(text, tokens, modality, medium, tower, grids, media.all(), inside=heard(tower))


def heard(tower: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a row's `inside`: the steps of the tower's convolution, and of the pooling behind it, that hear the sound."""
    if "feature_attention_mask" not in tower:
        return {}
    mask, inside = tower["feature_attention_mask"], {}
    steps = (mask.sum(-1) - 1) // 2 + 1
    for module, count, real in (("audio", 2, steps), ("projector", FRAMES_PER_POSITION, steps // 2)):
        window = torch.arange(mask.shape[-1] // count)
        inside[module] = torch.where(window < real[:, None], MODALITIES.index("audio"), PAD)
    return inside


def timeline(processor: Any, sound: Sound) -> Timeline:
    """Return when the positions of `sound` are heard. Raises ValueError for a rate or a length that the model can't take."""
    settings, count = processor.feature_extractor, len(sound.samples)
    rate, window = settings.sampling_rate, settings.n_samples
    if sound.rate is not None and sound.rate != rate:
        raise ValueError(
            f"this model hears {rate} samples a second, got a sound with {sound.rate}: resample it, for instance by "
            f"scipy.signal.resample_poly(samples, {rate}, {sound.rate}), and give (samples, {rate})"
        )
    if count > window:
        raise ValueError(
            f"this model hears at most {window / rate:g} s ({window} samples), got a sound of {count / rate:g} s ({count} "
            "samples): cut it into several sounds, or give a part"
        )
    frames = -(-count // settings.hop_length)
    heard = ((frames - 1) // 2 + 1) // 2  # an odd last step of the convolution has no neighbour to be averaged with
    if not heard:
        least = 2 * settings.hop_length + 1
        raise ValueError(f"this model hears at least {least} samples, got a sound of {count}: give a longer one")
    return Timeline(heard, FRAMES_PER_POSITION * settings.hop_length / rate)


FAMILY = Family(
    model_type="qwen2_audio",
    model_class="Qwen2AudioForConditionalGeneration",
    takes=("audio",),
    adapter=adapter,
    renames={"audio_encoder.encoder_layers.": "audio.blocks.", "audio_encoder.": "audio."},
    check=check,
    encode=encode,
    live_layers=lambda config: {},  # the tower's last block is read, and its own output is what is read
)
