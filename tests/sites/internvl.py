from sites import llava, under

MODEL_TYPE = "internvl"
TOWER = {
    "hook_resid_pre": ("", "in"),
    "hook_resid_post": ("", "out"),
    "ln1.hook_out": ("layernorm_before", "out"),
    "hook_attn_in": ("attention", "in"),
    "attn.hook_q": ("attention.q_proj", "out"),
    "attn.hook_k": ("attention.k_proj", "out"),
    "attn.hook_v": ("attention.v_proj", "out"),
    "attn.hook_z": ("attention.projection_layer", "in"),
    "attn.hook_out": ("attention", "out"),
    "hook_attn_out": ("attention", "out * lambda_1"),
    "ln2.hook_out": ("layernorm_after", "out"),
    "hook_mlp_in": ("mlp", "in"),
    "mlp.hook_pre": ("mlp.fc1", "out"),
    "mlp.hook_post": ("mlp.fc2", "in"),
    "mlp.hook_out": ("mlp", "out"),
    "hook_mlp_out": ("mlp", "out * lambda_2"),
}
SITES = {
    **{name: site for name, site in llava.SITES.items() if not name.startswith("vision")},
    **under("vision.blocks.{l}", "model.vision_tower.encoder.layer.{l}", TOWER),
    "vision.hook_embed": ("model.vision_tower.embeddings", "out"),
    "projector.norm.hook_out": ("model.multi_modal_projector.layer_norm", "out"),
}
ATTENTION = {
    "blocks.{l}": "model.language_model.layers.{l}.self_attn",
    "vision.blocks.{l}": "model.vision_tower.encoder.layer.{l}.attention",
}
