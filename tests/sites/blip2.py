from sites import under
from sites.blocks import BLIP, OPT, QFORMER

MODEL_TYPE = "blip-2"
TEXT = "language_model"
POST_NORM = ("qformer.",)
SITES = {
    **under("blocks.{l}", "language_model.model.decoder.layers.{l}", OPT),
    **under("vision.blocks.{l}", "vision_model.encoder.layers.{l}", BLIP),
    **under("qformer.blocks.{l}", "qformer.encoder.layer.{l}", QFORMER),
    "hook_embed": ("language_model.model.decoder.embed_tokens", "out"),
    "hook_pos_embed": ("language_model.model.decoder.embed_positions", "out"),
    "ln_final.hook_in": ("language_model.model.decoder.final_layer_norm", "in"),
    "ln_final.hook_out": ("language_model.model.decoder.final_layer_norm", "out"),
    "unembed.hook_in": ("language_model.lm_head", "in"),
    "hook_unembed": ("language_model.lm_head", "out"),
    "vision.hook_embed": ("vision_model.embeddings", "out"),
    "projector.hook_in": ("language_projection", "in"),
    "projector.hook_out": ("language_projection", "out"),
}
ATTENTION = {
    "blocks.{l}": "language_model.model.decoder.layers.{l}.self_attn",
    "vision.blocks.{l}": "vision_model.encoder.layers.{l}.self_attn",
    "qformer.blocks.{l}": "qformer.encoder.layer.{l}.attention.attention",
    "qformer.blocks.{l}.cross_attn": "qformer.encoder.layer.{l}.crossattention.attention",
}
