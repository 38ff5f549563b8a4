from sites import under
from sites.blocks import BLIP, LLAMA, QFORMER, QFORMER_TEXT

MODEL_TYPE = "instructblip"
TEXT = "language_model"
POST_NORM = ("qformer.",)
SITES = {
    **under("blocks.{l}", "language_model.model.layers.{l}", LLAMA),
    **under("vision.blocks.{l}", "vision_model.encoder.layers.{l}", BLIP),
    **under("qformer.blocks.{l}", "qformer.encoder.layer.{l}", QFORMER),
    **under("qformer_text.blocks.{l}", "qformer.encoder.layer.{l}", QFORMER_TEXT),
    "hook_embed": ("language_model.model.embed_tokens", "out"),
    "ln_final.hook_in": ("language_model.model.norm", "in"),
    "ln_final.hook_out": ("language_model.model.norm", "out"),
    "unembed.hook_in": ("language_model.lm_head", "in"),
    "hook_unembed": ("language_model.lm_head", "out"),
    "vision.hook_embed": ("vision_model.embeddings", "out"),
    "projector.hook_in": ("language_projection", "in"),
    "projector.hook_out": ("language_projection", "out"),
}
ATTENTION = {
    "blocks.{l}": "language_model.model.layers.{l}.self_attn",
    "vision.blocks.{l}": "vision_model.encoder.layers.{l}.self_attn",
    "qformer.blocks.{l}": "qformer.encoder.layer.{l}.attention.attention",
    "qformer.blocks.{l}.cross_attn": "qformer.encoder.layer.{l}.crossattention.attention",
}
