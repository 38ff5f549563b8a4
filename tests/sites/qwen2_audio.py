from sites import under
from sites.blocks import LLAMA

MODEL_TYPE = "qwen2_audio"
WHISPER = {
    "hook_resid_pre": ("", "in"),
    "hook_resid_post": ("", "out"),
    "ln1.hook_out": ("self_attn_layer_norm", "out"),
    "hook_attn_in": ("self_attn", "in"),
    "attn.hook_q": ("self_attn.q_proj", "out"),
    "attn.hook_k": ("self_attn.k_proj", "out"),
    "attn.hook_v": ("self_attn.v_proj", "out"),
    "attn.hook_z": ("self_attn.out_proj", "in"),
    "hook_attn_out": ("self_attn", "out"),
    "ln2.hook_out": ("final_layer_norm", "out"),
    "hook_mlp_in": ("fc1", "in"),
    "mlp.hook_pre": ("fc1", "out"),
    "mlp.hook_post": ("fc2", "in"),
    "hook_mlp_out": ("fc2", "out"),
}
SITES = {
    **under("blocks.{l}", "model.language_model.layers.{l}", LLAMA),
    **under("audio.blocks.{l}", "model.audio_tower.layers.{l}", WHISPER),
    "hook_embed": ("model.language_model.embed_tokens", "out"),
    "ln_final.hook_in": ("model.language_model.norm", "in"),
    "ln_final.hook_out": ("model.language_model.norm", "out"),
    "unembed.hook_in": ("lm_head", "in"),
    "hook_unembed": ("lm_head", "out"),
    "audio.conv1.hook_out": ("model.audio_tower.conv1", "out"),
    "audio.conv2.hook_out": ("model.audio_tower.conv2", "out"),
    "audio.hook_embed": ("model.audio_tower.layers.0", "in"),
    "audio.ln_final.hook_in": ("model.audio_tower.layer_norm", "in"),
    "audio.ln_final.hook_out": ("model.audio_tower.layer_norm", "out"),
    "projector.hook_in": ("model.multi_modal_projector", "in"),
    "projector.hook_out": ("model.multi_modal_projector", "out"),
}
ATTENTION = {
    "blocks.{l}": "model.language_model.layers.{l}.self_attn",
    "audio.blocks.{l}": "model.audio_tower.layers.{l}.self_attn",
}
