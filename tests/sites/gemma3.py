from sites import under
from sites.blocks import CLIP, GEMMA

MODEL_TYPE = "gemma3"
SITES = {
    **under("blocks.{l}", "model.language_model.layers.{l}", GEMMA),
    **under("vision.blocks.{l}", "model.vision_tower.encoder.layers.{l}", CLIP),
    "hook_embed": ("model.language_model.embed_tokens", "out"),
    "ln_final.hook_in": ("model.language_model.norm", "in"),
    "ln_final.hook_out": ("model.language_model.norm", "out"),
    "unembed.hook_in": ("lm_head", "in"),
    "hook_unembed": ("lm_head", "out"),
    "vision.hook_embed": ("model.vision_tower.embeddings", "out"),
    "projector.hook_in": ("model.multi_modal_projector", "in"),
    "projector.norm.hook_in": ("model.multi_modal_projector.mm_soft_emb_norm", "in"),
    "projector.norm.hook_out": ("model.multi_modal_projector.mm_soft_emb_norm", "out"),
    "projector.hook_out": ("model.multi_modal_projector", "out"),
}
ATTENTION = {
    "blocks.{l}": "model.language_model.layers.{l}.self_attn",
    "vision.blocks.{l}": "model.vision_tower.encoder.layers.{l}.self_attn",
}


def ahead(inputs, row):
    """Positions of one image, or of one crop of it, see each other."""
    kinds = inputs.stream["token_type_ids"][row].tolist()
    starts = [i for i, kind in enumerate(kinds) if kind == 1 and (i == 0 or kinds[i - 1] != 1)]
    image = [sum(start <= i for start in starts) if kind == 1 else None for i, kind in enumerate(kinds)]
    return [[key > i and own is not None and other == own for key, other in enumerate(image)] for i, own in enumerate(image)]
