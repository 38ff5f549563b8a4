from sites import qwen2_vl, under

MODEL_TYPE = "qwen2_5_vl"
TOWER = {
    **qwen2_vl.TOWER,
    "mlp.hook_pre": ("mlp.gate_proj", "out"),
    "mlp.hook_pre_linear": ("mlp.up_proj", "out"),
    "mlp.hook_post": ("mlp.down_proj", "in"),
}
SITES = {
    **qwen2_vl.LANGUAGE,
    **under("vision.blocks.{l}", "model.visual.blocks.{l}", TOWER),
    "vision.hook_embed": ("model.visual.patch_embed", "out"),
    **qwen2_vl.MERGER,
}
ATTENTION = qwen2_vl.ATTENTION
