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
    qwen2_5_vl,
    qwen2_audio,
    qwen2_vl,
    qwen3_vl,
    smolvlm,
)
FAMILIES: dict[str, Family] = {module.FAMILY.model_type: module.FAMILY for module in MODULES}


def family_of(model_type: str) -> Family:
    """Return the family of a transformers `model_type`. Raises UnsupportedModel for one that mmlens does not know."""
    if model_type not in FAMILIES:
        raise UnsupportedModel(f"mmlens knows the model types {', '.join(sorted(FAMILIES))}; this model is a {model_type!r}")
    return FAMILIES[model_type]


__all__ = ["FAMILIES", "Family", "UnsupportedModel", "family_of"]
