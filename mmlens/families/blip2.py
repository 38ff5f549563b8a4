"""BLIP-2: a ViT tower, a Q-Former, and OPT. See `blip` for the names."""

from typing import Any

from mmlens.families import blip
from mmlens.families.family import Family, one_of


def check(config: Any) -> None:
    """Raise UnsupportedModel, naming the setting, for a BLIP-2 configuration that is not understood."""
    blip.check(config, kind="blip_2", language="opt")
    text = config.text_config
    one_of("text_config.do_layer_norm_before", text.do_layer_norm_before, (True,))
    one_of("text_config._remove_final_layer_norm", text._remove_final_layer_norm, (False,))
    one_of("text_config.layer_norm_elementwise_affine", text.layer_norm_elementwise_affine, (True,))
    one_of("text_config.word_embed_proj_dim", text.word_embed_proj_dim, (text.hidden_size,))
    # The text branch is for retrieval; here it would be there and never run.
    one_of("qformer_config.use_qformer_text_input", config.qformer_config.use_qformer_text_input, (False,))


FAMILY = Family(
    model_type="blip-2",
    model_class="Blip2ForConditionalGeneration",
    takes=("image",),
    adapter=blip.adapter,
    check=check,
    encode=blip.encode,
    live_layers=lambda config: {},
    read_only={"pos_embed.hook_in": "hook_pos_embed"},  # the attention mask, from which OPT has already counted
    prepare=blip.prepare,
    settle=blip.settle,
    first_position=None,
)
