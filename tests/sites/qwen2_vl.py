from sites import under
from sites.blocks import LLAMA

MODEL_TYPE = "qwen2_vl"
TOWER = {
    "hook_resid_pre": ("", "in"),
    "hook_resid_post": ("", "out"),
    "ln1.hook_out": ("norm1", "out"),
    "hook_attn_in": ("attn", "in"),
    "attn.qkv.hook_out": ("attn.qkv", "out"),
    "attn.hook_z": ("attn.proj", "in"),
    "hook_attn_out": ("attn", "out"),
    "ln2.hook_out": ("norm2", "out"),
    "hook_mlp_in": ("mlp", "in"),
    "mlp.hook_pre": ("mlp.fc1", "out"),
    "mlp.hook_post": ("mlp.fc2", "in"),
    "hook_mlp_out": ("mlp", "out"),
}
LANGUAGE = {
    **under("blocks.{l}", "model.language_model.layers.{l}", LLAMA),
    "hook_embed": ("model.language_model.embed_tokens", "out"),
    "ln_final.hook_in": ("model.language_model.norm", "in"),
    "ln_final.hook_out": ("model.language_model.norm", "out"),
    "unembed.hook_in": ("lm_head", "in"),
    "hook_unembed": ("lm_head", "out"),
}
MERGER = {
    "projector.hook_in": ("model.visual.merger", "in"),
    "projector.hook_pre": ("model.visual.merger.mlp.0", "out"),
    "projector.hook_post": ("model.visual.merger.mlp.2", "in"),
    "projector.hook_out": ("model.visual.merger", "out"),
}
SITES = {
    **LANGUAGE,
    **under("vision.blocks.{l}", "model.visual.blocks.{l}", TOWER),
    "vision.hook_embed": ("model.visual.patch_embed", "out"),
    **MERGER,
}
ATTENTION = {
    "blocks.{l}": "model.language_model.layers.{l}.self_attn",
    "vision.blocks.{l}": "model.visual.blocks.{l}.attn",
}
