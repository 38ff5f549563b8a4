"""InstructBLIP: a ViT tower, a Q-Former that reads the instruction too, and Vicuna (Llama). See `blip` for the names."""

from typing import Any

from mmlens.families import blip
from mmlens.families.family import Family


def check(config: Any) -> None:
    """Raise UnsupportedModel, naming the setting, for an InstructBLIP configuration that is not understood."""
    blip.check(config, kind="instructblip", language="llama")


def live_layers(config: Any) -> dict[str, int]:
    """Return how many of the Q-Former's text branches are read: behind the last block, nobody attends to words."""
    return {"qformer_text": config.qformer_config.num_hidden_layers - 1}


FAMILY = Family(
    model_type="instructblip",
    model_class="InstructBlipForConditionalGeneration",
    takes=("image",),
    adapter=blip.adapter,
    renames={
        "qformer.blocks.{l}.mlp_text.": "qformer_text.blocks.{l}.mlp.",
        "qformer.blocks.{l}.ln_text.": "qformer_text.blocks.{l}.ln.",
        "qformer.blocks.{l}.hook_text_": "qformer_text.blocks.{l}.hook_",
    },
    check=check,
    encode=blip.encode,
    live_layers=live_layers,
    prepare=blip.prepare,
    settle=blip.settle,
)
