from types import SimpleNamespace

from sites import under
from sites.blocks import CLIP, GEMMA, LLAMA

MODEL_TYPE = "paligemma"
ATTENTION = {
    "blocks.{l}": "model.language_model.layers.{l}.self_attn",
    "vision.blocks.{l}": "model.vision_tower.encoder.layers.{l}.self_attn",
}


def of(config):
    """Gemma 2 has norms on both sides of a sublayer, Gemma before it only."""
    block = LLAMA if config.text_config.model_type == "gemma" else GEMMA
    sites = {
        **under("blocks.{l}", "model.language_model.layers.{l}", block),
        **under("vision.blocks.{l}", "model.vision_tower.encoder.layers.{l}", CLIP),
        "hook_embed": ("model.language_model.embed_tokens", "out"),
        "ln_final.hook_in": ("model.language_model.norm", "in"),
        "ln_final.hook_out": ("model.language_model.norm", "out"),
        "unembed.hook_in": ("lm_head", "in"),
        "hook_unembed": ("lm_head", "out"),
        "vision.hook_embed": ("model.vision_tower.embeddings", "out"),
        "projector.hook_in": ("model.multi_modal_projector", "in"),
        "projector.hook_out": ("model.multi_modal_projector", "out"),
    }
    return SimpleNamespace(SITES=sites, ATTENTION=ATTENTION)


def ahead(inputs, row):
    """The whole prompt sees itself; what follows it is read in order."""
    kinds = inputs.stream["token_type_ids"][row].tolist()
    return [[key > query and kind == kinds[key] == 0 for key in range(len(kinds))] for query, kind in enumerate(kinds)]
