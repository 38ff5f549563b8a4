from sites import qwen2_vl, under

MODEL_TYPE = "qwen3_vl"
TOWER = {
    **qwen2_vl.TOWER,
    "mlp.hook_pre": ("mlp.linear_fc1", "out"),
    "mlp.hook_post": ("mlp.linear_fc2", "in"),
}
MERGER = {
    "hook_in": ("", "in"),
    "hook_pre": ("linear_fc1", "out"),
    "hook_post": ("linear_fc2", "in"),
    "hook_out": ("", "out"),
}
SITES = {
    **qwen2_vl.LANGUAGE,
    "blocks.{l}.attn.q_norm.hook_out": ("model.language_model.layers.{l}.self_attn.q_norm", "out"),
    "blocks.{l}.attn.k_norm.hook_out": ("model.language_model.layers.{l}.self_attn.k_norm", "out"),
    **under("vision.blocks.{l}", "model.visual.blocks.{l}", TOWER),
    "vision.hook_embed": ("model.visual.patch_embed", "out"),
    **under("deepstack.{l}", "model.visual.deepstack_merger_list.{l}", MERGER),
    **under("projector", "model.visual.merger", MERGER),
}
ATTENTION = qwen2_vl.ATTENTION
