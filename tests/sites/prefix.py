from types import SimpleNamespace

from sites import call, chunk, under
from sites.blocks import CLIP, LLAMA, OPT

MODEL_TYPE = "mmlens-prefix"

GPT2 = {
    "hook_resid_pre": ("", "in"),
    "hook_resid_post": ("", "out"),
    "ln1.hook_out": ("ln_1", "out"),
    "attn.hook_in": ("attn", "in"),
    "attn.hook_q": chunk("attn.c_attn", 0, 3),
    "attn.hook_k": chunk("attn.c_attn", 1, 3),
    "attn.hook_v": chunk("attn.c_attn", 2, 3),
    "attn.hook_z": ("attn.c_proj", "in"),
    "hook_attn_out": ("attn", "out"),
    "ln2.hook_out": ("ln_2", "out"),
    "mlp.hook_in": ("mlp", "in"),
    "mlp.hook_pre": ("mlp.c_fc", "out"),
    "mlp.hook_post": ("mlp.c_proj", "in"),
    "hook_mlp_out": ("mlp", "out"),
}
GPTJ = {
    "hook_resid_pre": ("", "in"),
    "hook_resid_post": ("", "out"),
    "ln1.hook_out": ("ln_1", "out"),
    "attn.hook_in": ("attn", "in"),
    "attn.hook_q": ("attn.q_proj", "out"),
    "attn.hook_k": ("attn.k_proj", "out"),
    "attn.hook_v": ("attn.v_proj", "out"),
    "attn.hook_z": ("attn.out_proj", "in"),
    "hook_attn_out": ("attn", "out"),
    "mlp.hook_in": ("mlp", "in"),
    "mlp.hook_pre": ("mlp.fc_in", "out"),
    "mlp.hook_post": ("mlp.fc_out", "in"),
    "hook_mlp_out": ("mlp", "out"),
}
VIT = {
    "hook_resid_pre": ("", "in"),
    "hook_resid_post": ("", "out"),
    "ln1.hook_out": ("layernorm_before", "out"),
    "hook_attn_in": ("attention", "in"),
    "attn.hook_q": ("attention.q_proj", "out"),
    "attn.hook_k": ("attention.k_proj", "out"),
    "attn.hook_v": ("attention.v_proj", "out"),
    "attn.hook_z": ("attention.o_proj", "in"),
    "hook_attn_out": ("attention", "out"),
    "ln2.hook_out": ("layernorm_after", "out"),
    "hook_mlp_in": ("mlp", "in"),
    "mlp.hook_pre": ("mlp.fc1", "out"),
    "mlp.hook_post": ("mlp.fc2", "in"),
    "hook_mlp_out": ("mlp", "out"),
}
BEIT = {**VIT, "hook_attn_out": call("drop_path", 0, 2), "hook_mlp_out": call("drop_path", 1, 2)}  # behind its scales

# The path of the blocks, their table, attention, the token embedding and the final norm.
TEXTS = {
    "gpt2": ("transformer.h", GPT2, "attn", "transformer.wte", "transformer.ln_f"),
    "gptj": ("transformer.h", GPTJ, "attn", "transformer.wte", "transformer.ln_f"),
    "opt": ("model.decoder.layers", OPT, "self_attn", "model.decoder.embed_tokens", "model.decoder.final_layer_norm"),
    "llama": ("model.layers", LLAMA, "self_attn", "model.embed_tokens", "model.norm"),
}
TOWERS = {
    "beit": ("layers", BEIT, "attention"),
    "vit": ("layers", VIT, "attention"),
    "clip_vision_model": ("encoder.layers", CLIP, "self_attn"),
    "siglip_vision_model": ("encoder.layers", CLIP, "self_attn"),
}


def of(config):
    """Return the sites of this language model behind this tower."""
    blocks, text, attention, embed, norm = TEXTS[config.text_config.model_type]
    layers, tower, looks = TOWERS[config.vision_config.model_type]
    return SimpleNamespace(
        SITES={
            **under("blocks.{l}", f"language_model.{blocks}.{{l}}", text),
            **under("vision.blocks.{l}", f"vision_tower.{layers}.{{l}}", tower),
            "hook_embed": (f"language_model.{embed}", "out"),
            "ln_final.hook_in": (f"language_model.{norm}", "in"),
            "ln_final.hook_out": (f"language_model.{norm}", "out"),
            "unembed.hook_in": ("language_model.lm_head", "in"),
            "hook_unembed": ("language_model.lm_head", "out"),
            "vision.hook_embed": ("vision_tower.embeddings", "out"),
            "projector.hook_in": ("projector", "in"),
            "projector.hook_out": ("projector", "out"),
        },
        ATTENTION={
            "blocks.{l}": f"language_model.{blocks}.{{l}}.{attention}",
            "vision.blocks.{l}": f"vision_tower.{layers}.{{l}}.{looks}",
        },
    )


def route(reference, attention):
    """Let GPT-J, whose attention is written out in its module, call `attention`."""
    for module in reference.modules():
        if type(module).__name__ == "GPTJAttention":
            module._attn = lambda query, key, value, mask=None, module=module: (
                attention(module, query, key, value, mask, 1 / module.scale_attn)[0].transpose(1, 2),
                None,
            )
