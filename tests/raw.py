"""The truth that the tests compare with: a plain transformers model, read and edited with raw torch hooks.

Nothing here imports mmlens. `SITES` says where a hook point of the language model, the tower or the projector lies in
transformers' LLaVA: the submodule, and whether the point is its input or its output.
"""

from contextlib import ExitStack, contextmanager

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

LANGUAGE = {
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
VISION = {
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
ELSEWHERE = {
    "hook_embed": ("model.language_model.embed_tokens", "out"),
    "ln_final.hook_in": ("model.language_model.norm", "in"),
    "ln_final.hook_out": ("model.language_model.norm", "out"),
    "unembed.hook_in": ("lm_head", "in"),
    "hook_unembed": ("lm_head", "out"),
    "vision.hook_embed": ("model.vision_tower.embeddings", "out"),
    "projector.hook_in": ("model.multi_modal_projector", "in"),
    "projector.hook_pre": ("model.multi_modal_projector.linear_1", "out"),
    "projector.hook_post": ("model.multi_modal_projector.linear_2", "in"),
    "projector.hook_out": ("model.multi_modal_projector", "out"),
}
# Layer 1 of the language model and layer 0 of the tower: both have something before them and are read by what follows.
SITES = [f"blocks.1.{p}" for p in LANGUAGE] + [f"vision.blocks.0.{p}" for p in VISION] + list(ELSEWHERE)


def same(ours, truth, *, relative=1e-4):
    """Fail unless two tensors agree to `relative` of the largest entry of the truth."""
    assert ours.shape == truth.shape, f"{tuple(ours.shape)} is not {tuple(truth.shape)}"
    error, largest = (ours.float() - truth.float()).abs().max(), truth.float().abs().max()
    assert error <= relative * largest, f"error {error:.2e} where the largest entry is {largest:.2e}"


def differs(one, other, *, by=1e-3):
    """Fail where an edit left no visible trace: a comparison would then compare nothing."""
    change = (one.float() - other.float()).abs().max()
    assert change > by, f"the edit has no visible effect: the largest change is {change:.2e}"


def locate(plain, name):
    """Return the submodule of `plain` where the hook point `name` lies, and "in" or "out"."""
    if name in ELSEWHERE:
        path, side = ELSEWHERE[name]
        return plain.get_submodule(path), side
    vision = name.startswith("vision.")
    layer, _, point = name.removeprefix("vision.").removeprefix("blocks.").partition(".")
    layers = plain.model.vision_tower.encoder.layers if vision else plain.model.language_model.layers
    path, side = (VISION if vision else LANGUAGE)[point]
    return layers[int(layer)].get_submodule(path), side


def attach(plain, name, change):
    """Return the handle of a raw torch hook that puts `change(activation)` in place (None: only looks)."""
    module, side = locate(plain, name)

    def before(module, args, kwargs):
        new = change(args[0] if args else kwargs["hidden_states"])
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    def after(module, args, output):
        new = change(output[0] if isinstance(output, tuple) else output)
        return (new, *output[1:]) if isinstance(output, tuple) and new is not None else new

    if side == "in":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


@contextmanager
def edited(plain, changes):
    """Edit `plain` inside the `with`: `changes` maps hook names to functions of the activation."""
    with ExitStack() as stack:
        for name, change in changes.items():
            stack.callback(attach(plain, name, change).remove)
        yield plain


def logits(plain, inputs, changes=None):
    """Return what the plain model says, with raw edits."""
    with edited(plain, changes or {}):
        return plain(**inputs.kwargs(), use_cache=False).logits


def read(plain, inputs, names, *, retain=False):
    """Return the logits and the activations at `names`; with `retain` their gradients will be kept."""
    seen = {}

    def keep(name):
        def look(activation):
            if retain:
                activation.retain_grad()
            seen[name] = activation

        return look

    return logits(plain, inputs, {name: keep(name) for name in names}), seen


def noise(activation, seed=0, scale=1.0):
    """Return noise of the activation's shape and size, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(activation.shape, generator=generator).to(activation) * activation.detach().float().std() * scale


# ---------------------------------------------------------------- attention, written out

REFERENCE = "reference"
_CHANGES = {}


def _attention(module, query, key, value, attention_mask, scaling, **kwargs):
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    change = _CHANGES.get(module, {})
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    scores = change.get("scores", lambda x: x)(scores)
    pattern = change.get("pattern", lambda x: x)(scores.softmax(-1))
    return torch.einsum("bhqk,bhkd->bqhd", pattern, value), None


AttentionInterface.register(REFERENCE, _attention)
AttentionMaskInterface.register(REFERENCE, eager_mask)


def attention_of(reference, name):
    """Return the plain attention module to which `blocks.1.attn.hook_pattern` (say) belongs, and "scores" or "pattern"."""
    vision = name.startswith("vision.")
    layer = int(name.removeprefix("vision.").split(".")[1])
    layers = reference.model.vision_tower.encoder.layers if vision else reference.model.language_model.layers
    return layers[layer].self_attn, "scores" if name.endswith("scores") else "pattern"


def attention_logits(reference, inputs, changes):
    """Return the logits of the model with the attention above; `changes` maps hook names to functions of the matrix."""
    try:
        for name, change in changes.items():
            module, which = attention_of(reference, name)
            _CHANGES.setdefault(module, {})[which] = change
        return reference(**inputs.kwargs(), use_cache=False).logits
    finally:
        _CHANGES.clear()


def attention_read(reference, inputs, names, *, retain=False):
    """Return the logits and the scores or patterns at `names`."""
    seen = {}

    def keep(name):
        def look(matrix):
            if retain:
                matrix.retain_grad()
            seen[name] = matrix
            return matrix

        return look

    return attention_logits(reference, inputs, {name: keep(name) for name in names}), seen
