from sites import under
from sites.blocks import CLIP, LLAMA

MODEL_TYPE = "llava"
SITES = {
    **under("blocks.{l}", "model.language_model.layers.{l}", LLAMA),
    **under("vision.blocks.{l}", "model.vision_tower.encoder.layers.{l}", CLIP),
    "hook_embed": ("model.language_model.embed_tokens", "out"),
    "ln_final.hook_in": ("model.language_model.norm", "in"),
    "ln_final.hook_out": ("model.language_model.norm", "out"),
    "unembed.hook_in": ("lm_head", "in"),
    "hook_unembed": ("lm_head", "out"),
    "vision.hook_embed": ("model.vision_tower.embeddings", "out"),
    "projector.hook_in": ("model.multi_modal_projector", "in"),
    "projector.hook_pre": ("model.multi_modal_projector.linear_1", "out"),
    "projector.hook_post": ("model.multi_modal_projector.linear_2", "in"),
    "projector.hook_out": ("model.multi_modal_projector", "out"),
}
ATTENTION = {
    "blocks.{l}": "model.language_model.layers.{l}.self_attn",
    "vision.blocks.{l}": "model.vision_tower.encoder.layers.{l}.self_attn",
}
