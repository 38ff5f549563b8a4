"""The truth that the tests compare with: a plain transformers model, read and edited with raw torch hooks.

Nothing here imports mmlens. `sites/` says where each family's hook points lie in transformers' own model.
"""

import re
from contextlib import ExitStack, contextmanager
from inspect import signature
from itertools import pairwise

import sites
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask


def same(ours, truth, *, relative=1e-4):
    """Fail unless two tensors agree to `relative` of the largest entry of the truth."""
    assert ours.shape == truth.shape, f"{tuple(ours.shape)} is not {tuple(truth.shape)}"
    error, largest = (ours.float() - truth.float()).abs().max(), truth.float().abs().max()
    assert error <= relative * largest, f"error {error:.2e} where the largest entry is {largest:.2e}"


def differs(one, other, *, by=1e-3):
    """Fail where an edit left no visible trace: a comparison would then compare nothing."""
    change = (one.float() - other.float()).abs().max()
    assert change > by, f"the edit has no visible effect: the largest change is {change:.2e}"


FILES = sites.load()


def table(plain):
    """Return the file of a model's family, or what the file says of this model's config: `SITES` and `ATTENTION`."""
    file = FILES[plain.config.model_type]
    return file.of(plain.config) if hasattr(file, "of") else file


def names(plain, which="SITES"):
    """Return the names that a family's table has: of layer 1 of the language model and layer 0 of a tower.

    Both have something before them and are read by what follows.
    """
    return [name.format(l=1 if name.startswith("blocks") else 0) for name in getattr(table(plain), which)]


def prefixes(plain):
    """Return what the blocks of the language model and of each tower are called: "", "vision." and so on.

    Where a family's file calls one's norms `POST_NORM`, its stream is another sum, which the family's own tests are about.
    """
    found = [name.removesuffix("blocks.{l}") for name in table(plain).ATTENTION if name.endswith("blocks.{l}")]
    return [prefix for prefix in found if prefix not in getattr(FILES[plain.config.model_type], "POST_NORM", ())]


def matrices(plain):
    """Return the names of the attention scores and patterns that are compared: one layer of each module."""
    layers = [name.format(l=1 if name.startswith("blocks") else 0) for name in table(plain).ATTENTION]
    owners = [name if name.endswith("attn") else f"{name}.attn" for name in layers]
    return [f"{owner}.{matrix}" for owner in owners for matrix in ("hook_pattern", "hook_attn_scores")]


def locate(plain, name):
    """Return the submodule of `plain` where the hook point `name` lies, and "in" or "out"."""
    path, side, *part = _site(plain, name)
    return plain.get_submodule(path), side.partition(" * ")[0], *part


def _site(plain, name):
    layer = re.search(r"(?:blocks|deepstack)\.(\d+)", name)
    template = re.sub(r"(blocks|deepstack)\.\d+", r"\1.{l}", name)
    path, side, *part = table(plain).SITES[template]
    return path.format(l=layer and layer[1]), side, *part


def _factor(plain, name):
    """Return what a block multiplies its part's output by ("out * lambda_1"), None where it does not."""
    path, side, *_ = _site(plain, name)
    parameter = side.partition(" * ")[2]
    return getattr(plain.get_submodule(path.rpartition(".")[0]), parameter) if parameter else None


def attach(plain, name, change):
    """Return the handle of a raw torch hook that puts `change(activation)` in place (None: only looks)."""
    module, side, *part = locate(plain, name)
    factor = _factor(plain, name)
    if part:
        change = _of_a_part(change, *part[0])

    def before(module, args, kwargs):
        given = next((key for key in ("hidden_states", "inputs_embeds", "input", "x") if key in kwargs), None)
        new = change(args[0] if given is None else kwargs[given])
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if given is None else (args, {**kwargs, given: new})

    def after(module, args, output):
        own = output[0] if isinstance(output, tuple) else output
        new = change(own if factor is None else own * factor)
        new = new if factor is None or new is None else new / factor
        return (new, *output[1:]) if isinstance(output, tuple) and new is not None else new

    if side == "in":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


def weight(plain, name):
    """Return the weight of the linear map at a site, as [in, out]: GPT-2's Conv1D has it so, nn.Linear transposed."""
    linear = locate(plain, name)[0]
    return linear.weight if type(linear).__name__ == "Conv1D" else linear.weight.T


def has(plain, name):
    """Return whether a family's table has the site `name` (of any layer)."""
    return re.sub(r"blocks\.\d+", "blocks.{l}", name) in table(plain).SITES


def side_by_side(plain):
    """Return whether attention and MLP of a block of the language model both read what enters it, as GPT-J's do."""
    return not has(plain, "blocks.0.ln2.hook_out")


def _of_a_part(change, which, index, count):
    """Return `change` of one of `count` parts of an activation, or of one of `count` calls."""
    calls = []

    def of_chunk(activation):
        parts = list(activation.chunk(count, dim=-1))
        new = change(parts[index])
        parts[index] = parts[index] if new is None else new
        return torch.cat(parts, dim=-1)

    def of_call(activation):
        calls.append(None)
        return change(activation) if (len(calls) - 1) % count == index else None

    return of_chunk if which == "chunk" else of_call


@contextmanager
def edited(plain, changes):
    """Edit `plain` inside the `with`: `changes` maps hook names to functions of the activation."""
    with ExitStack() as stack:
        for name, change in changes.items():
            stack.callback(attach(plain, name, change).remove)
        yield plain


def runs(plain, inputs):
    """Return what reads these inputs: the model, or the part of it that its file names for a text without media (`TEXT`)."""
    part = getattr(FILES[plain.config.model_type], "TEXT", "")
    return plain if inputs.tower else plain.get_submodule(part)


def logits(plain, inputs, changes=None):
    """Return what the plain model says, with raw edits."""
    with edited(plain, changes or {}):
        return runs(plain, inputs)(**inputs.kwargs(), use_cache=False).logits


def implementations(plain):
    """Return which attention each part of a model uses: SDPA, but where transformers can't compute it with that."""
    parts = {name: getattr(plain.config, name, None) for name in plain.config.sub_configs}
    return {"": plain.config._attn_implementation} | {
        name: part._attn_implementation for name, part in parts.items() if part
    }


def generate(plain, inputs, **options):
    """Return what the plain model writes, greedily, behind the prompt's tokens."""
    with torch.no_grad():
        tokens = runs(plain, inputs).generate(**inputs.kwargs(), do_sample=False, **options)
    echoes = getattr(FILES[plain.config.model_type], "ECHOES", True)
    return tokens if echoes else torch.cat([inputs.tokens, tokens], dim=1)


def read(plain, inputs, names, *, retain=False):
    """Return the logits and the activations at `names`; with `retain` their gradients will be kept.

    Where a language model lays batch and positions on one axis, they are two here (not with `retain`: it would be a copy).
    """
    seen = {}

    def keep(name):
        def look(activation):
            if retain:  # of what passes here only: the tensor itself may go elsewhere too
                activation = activation.view_as(activation)
                activation.retain_grad()
            seen[name] = activation
            return activation if retain else None

        return look

    said = logits(plain, inputs, {name: keep(name) for name in names})
    flat = [name for name, activation in seen.items() if name.startswith("blocks") and activation.ndim == 2 and not retain]
    return said, seen | {name: seen[name].unflatten(0, inputs.tokens.shape) for name in flat}


def gain_and_scale(norm, x):
    """Return what a norm multiplies by, and what it divides `x` by; the first is asked of an RMS norm itself."""
    if isinstance(norm, torch.nn.LayerNorm):
        return norm.weight, (x.float().var(-1, keepdim=True, correction=0) + norm.eps).sqrt()
    epsilon = getattr(norm, "variance_epsilon", None) or norm.eps
    gain = norm(torch.ones(x.shape[-1])) * (1 + epsilon) ** 0.5
    return gain, (x.float().pow(2).mean(-1, keepdim=True) + epsilon).sqrt()


def centred(norm, x):
    """Return what a norm divides and multiplies: `x`, without its mean where the norm takes that away."""
    return x - x.mean(-1, keepdim=True) if isinstance(norm, torch.nn.LayerNorm) else x


def constant(norm):
    """Return what a norm adds whatever it reads: its bias, which belongs to no component; 0 where there is none."""
    bias = getattr(norm, "bias", None)
    return 0.0 if bias is None else bias


def way_into_stream(plain, inputs, name):
    """Return what a sublayer's output is multiplied by before it enters the stream at `name`: 1 where there is no norm."""
    norm, seen = locate(plain, name)[0], []
    weight = getattr(norm, "weight", None)
    if weight is None or weight.ndim != 1:
        return 1.0
    handle = norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    logits(plain, inputs)
    handle.remove()
    gain, scale = gain_and_scale(norm, seen[0])
    return gain / scale


def soft_cap(plain, scores):
    """Return logits as the plain model gives them out, from what its unembedding gives."""
    cap = getattr(plain.config.get_text_config(), "final_logit_softcapping", None)
    return torch.tanh(scores / cap) * cap if cap else scores


def ahead(model_type, inputs):
    """Return which later positions may be seen, [batch, query, key]: a family's file says where there are any."""
    find = getattr(FILES[model_type], "ahead", None)
    rows, length = inputs.tokens.shape
    none = torch.zeros(rows, length, length, dtype=torch.bool)
    return none if find is None else torch.tensor([find(inputs, row) for row in range(rows)])


def noise(activation, seed=0, scale=1.0):
    """Return noise of the activation's shape and size, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(activation.shape, generator=generator).to(activation) * activation.detach().float().std() * scale


# ---------------------------------------------------------------- attention, written out

REFERENCE = "reference"
_CHANGES = {}
_BLOCKS = {}


def _attention(module, query, key, value, attention_mask, scaling, softcap=None, **kwargs):
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    change = _CHANGES.get(module, {})
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * scaling
    if module in _BLOCKS:
        attention_mask = _BLOCKS[module].to(scores)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    change.get("unmasked", lambda x: x)(scores)
    if attention_mask is not None:
        scores = scores + attention_mask
    scores = change.get("scores", lambda x: x)(scores)
    pattern = change.get("pattern", lambda x: x)(scores.softmax(-1))
    return torch.einsum("bhqk,bhkd->bqhd", pattern, value), None


def _unpack(module, args, kwargs):
    """Let packed chunks attend in one call, as a mask that is 0 inside each and the lowest number elsewhere."""
    ends = kwargs["cu_seqlens"].tolist()
    mask = torch.full((ends[-1], ends[-1]), torch.finfo(torch.float32).min)
    for start, stop in pairwise(ends):
        mask[start:stop, start:stop] = 0
    _BLOCKS[module] = mask
    return args, {**kwargs, "cu_seqlens": torch.tensor([0, ends[-1]])}


AttentionInterface.register(REFERENCE, _attention)
AttentionMaskInterface.register(REFERENCE, eager_mask)


def route(reference):
    """Let a model with attention of its own call the one above, where its family's file says how."""
    getattr(FILES[reference.config.model_type], "route", lambda reference, attention: None)(reference, _attention)


def attention_of(reference, name):
    """Return the plain attention module to which `blocks.1.attn.hook_pattern` (say) belongs, and what of it the point holds.

    That is "scores", "pattern", or "unmasked": the scores before the mask is added.
    """
    block, layer, kind = re.match(r"(.*blocks\.)(\d+)\.(\w+)", name).groups()
    paths = table(reference).ATTENTION
    path = paths[block + "{l}"] if kind == "attn" else paths[block + "{l}." + kind]
    return reference.get_submodule(path.format(l=layer)), re.search("scores|unmasked|pattern$", name)[0]


def attention_logits(reference, inputs, changes):
    """Return the logits of the model with the attention above; `changes` maps hook names to functions of the matrix."""
    handles = []
    try:
        for name, change in changes.items():
            module, which = attention_of(reference, name)
            if module not in _CHANGES and "cu_seqlens" in signature(module.forward).parameters:
                handles.append(module.register_forward_pre_hook(_unpack, with_kwargs=True))
            _CHANGES.setdefault(module, {})[which] = change
        return runs(reference, inputs)(**inputs.kwargs(), use_cache=False).logits
    finally:
        _CHANGES.clear()
        _BLOCKS.clear()
        for handle in handles:
            handle.remove()


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
