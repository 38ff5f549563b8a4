"""One file per architecture: how TransformerLens wraps it, what its processor's output means, and its grid."""

from mmlens.families import (
    blip2,
    gemma3,
    idefics3,
    instructblip,
    internvl,
    llava,
    llava_next,
    llava_onevision,
    paligemma,
    prefix,
    qwen2_5_vl,
    qwen2_audio,
    qwen2_vl,
    qwen3_vl,
    smolvlm,
)
from mmlens.families.family import Family, UnsupportedModel

MODULES = (
    blip2,
    gemma3,
    idefics3,
    instructblip,
    internvl,
    llava,
    llava_next,
    llava_onevision,
    paligemma,
    prefix,
    qwen2_5_vl,
    qwen2_audio,
    qwen2_vl,
    qwen3_vl,
    smolvlm,
)
FAMILIES: dict[str, Family] = {module.FAMILY.model_type: module.FAMILY for module in MODULES}

# What is known to be asked for, and what would be needed.
UNSUPPORTED = {
    "mplug_owl2": "its code lies in a hub repository, not in transformers: mmlens runs no code from there, and transformers "
    "would need the architecture (its norms and key and value maps are doubled, one for text and one for pictures)",
    "mllama": "its pictures are read by cross-attention and take no positions of the stream: names and masks for what the "
    "language model attends to beside its stream would be needed",
    "florence2": "its language model is an encoder and a decoder, with a stream of positions each: names and masks for two "
    "streams would be needed",
    "llama4": "its MLPs are experts that a router chooses: neurons would need an expert in their name",
}


def family_of(model_type: str) -> Family:
    """Return the family of a transformers `model_type`. Raises UnsupportedModel for one that mmlens does not know."""
    if model_type in UNSUPPORTED:
        raise UnsupportedModel(f"mmlens does not hook a {model_type!r}: {UNSUPPORTED[model_type]}")
    if model_type not in FAMILIES:
        raise UnsupportedModel(f"mmlens knows the model types {', '.join(sorted(FAMILIES))}; this model is a {model_type!r}")
    return FAMILIES[model_type]


__all__ = ["FAMILIES", "Family", "UnsupportedModel", "family_of"]
