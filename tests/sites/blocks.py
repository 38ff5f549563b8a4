"""The blocks that families share."""

LLAMA = {
    "hook_resid_pre": ("", "in"),
    "hook_resid_post": ("", "out"),
    "ln1.hook_out": ("input_layernorm", "out"),
    "attn.hook_in": ("self_attn", "in"),
    "attn.hook_q": ("self_attn.q_proj", "out"),
    "attn.hook_k": ("self_attn.k_proj", "out"),
    "attn.hook_v": ("self_attn.v_proj", "out"),
    "attn.hook_z": ("self_attn.o_proj", "in"),
    "hook_attn_out": ("self_attn", "out"),
    "ln2.hook_out": ("post_attention_layernorm", "out"),
    "mlp.hook_in": ("mlp", "in"),
    "mlp.hook_pre": ("mlp.gate_proj", "out"),
    "mlp.hook_pre_linear": ("mlp.up_proj", "out"),
    "mlp.hook_post": ("mlp.down_proj", "in"),
    "hook_mlp_out": ("mlp", "out"),
}
GEMMA = {  # norms before and after each sublayer: what enters the stream is behind the second
    **LLAMA,
    "attn.hook_out": ("self_attn", "out"),
    "hook_attn_out": ("post_attention_layernorm", "out"),
    "ln2.hook_out": ("pre_feedforward_layernorm", "out"),
    "mlp.hook_out": ("mlp", "out"),
    "hook_mlp_out": ("post_feedforward_layernorm", "out"),
}
CLIP = {
    "hook_resid_pre": ("", "in"),
    "hook_resid_post": ("", "out"),
    "ln1.hook_out": ("layer_norm1", "out"),
    "hook_attn_in": ("self_attn", "in"),
    "attn.hook_q": ("self_attn.q_proj", "out"),
    "attn.hook_k": ("self_attn.k_proj", "out"),
    "attn.hook_v": ("self_attn.v_proj", "out"),
    "attn.hook_z": ("self_attn.out_proj", "in"),
    "hook_attn_out": ("self_attn", "out"),
    "ln2.hook_out": ("layer_norm2", "out"),
    "hook_mlp_in": ("mlp", "in"),
    "mlp.hook_pre": ("mlp.fc1", "out"),
    "mlp.hook_post": ("mlp.fc2", "in"),
    "hook_mlp_out": ("mlp", "out"),
}
