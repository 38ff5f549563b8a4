from sites import under
from sites.blocks import CLIP, LLAMA

MODEL_TYPE = "idefics3"
SITES = {
    **under("blocks.{l}", "model.text_model.layers.{l}", LLAMA),
    **under("vision.blocks.{l}", "model.vision_model.encoder.layers.{l}", CLIP),
    "hook_embed": ("model.text_model.embed_tokens", "out"),
    "ln_final.hook_in": ("model.text_model.norm", "in"),
    "ln_final.hook_out": ("model.text_model.norm", "out"),
    "unembed.hook_in": ("lm_head", "in"),
    "hook_unembed": ("lm_head", "out"),
    "vision.hook_embed": ("model.vision_model.embeddings", "out"),
    "vision.post_layernorm.hook_out": ("model.vision_model.post_layernorm", "out"),
    "projector.hook_in": ("model.connector", "in"),
    "projector.in.hook_in": ("model.connector.modality_projection.proj", "in"),
    "projector.hook_out": ("model.connector", "out"),
}
ATTENTION = {
    "blocks.{l}": "model.text_model.layers.{l}.self_attn",
    "vision.blocks.{l}": "model.vision_model.encoder.layers.{l}.self_attn",
}
