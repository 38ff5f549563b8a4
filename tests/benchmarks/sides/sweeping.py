"""Statistics over samples: each round has samples of its own, one at a time."""

from functools import partial

import torch
from task import TEXT, Task, pictures
from worker import Run

LABELS = ("ad", "com", "doc", "med", "rs")
FIVE = ("probability", "mean", "max", "attn_k", "attn_q")
GROUPS = ("image", "text")


def examples(task: Task, turn: int) -> list:
    from mmlens import Example

    count, each = task.facts["rows"], task.facts["images"]
    shown = pictures(count * each, first=turn * count * each)
    parts = enumerate(shown[start : start + each] for start in range(0, len(shown), each))
    return [Example(TEXT, images=part, label=LABELS[place % len(LABELS)]) for place, part in parts]


def nothing(task: Task) -> Run:
    """The same forwards, nothing attached."""
    model = task.hooked()

    def run(turn: int):
        with torch.no_grad():
            for one in examples(task, turn):
                model(model.to_inputs(one.text, images=one.images))
        return {}

    return run


def dape(task: Task) -> Run:
    """The count of active positions of every neuron of language model, tower and projector, by five labels."""
    from mmlens import TokenStats, sweep

    model = task.hooked()
    modules = ("language", "vision", "projector")

    def run(turn: int):
        counts = TokenStats(model.widths, labels=LABELS, modules=modules, site="gate_act", statistics=("count",))
        found = sweep(model, examples(task, turn), {"counts": counts}, batch_size=1, progress=False)
        return {"probability": found["counts"].table("probability")}

    return run


def miner(task: Task, causal: bool = True) -> Run:
    """MINER's five scores of the language model at image and text positions."""
    from mmlens import SampleStats, sweep

    model = task.hooked()
    how = dict(groups=GROUPS, site="gate_act", statistics=FIVE, normalise="minmax", renorm="softmax", causal=causal)

    def run(turn: int):
        scores = SampleStats(model.widths, **how)
        found = sweep(model, examples(task, turn), {"scores": scores}, batch_size=1, progress=False)["scores"]
        return {score: found.table(score)[0] for score in FIVE}

    return run


def unmasked(task: Task) -> Run:
    """The same, with attention without its causal mask, as their code takes it."""
    return miner(task, causal=False)


def plainly(task: Task) -> Run:
    """MINER's procedure on eager attention: all heads once more without the mask, products [pos, pos] x [pos, unit]."""
    model, eager = task.hooked(), task.plain("eager")  # of the hooked model only `to_inputs` is used
    blocks = eager.model.language_model.layers

    def run(turn: int):
        seen, handles = {}, []
        for layer, block in enumerate(blocks):
            see = partial(
                lambda layer, module, args, kwargs: seen.update({("s", layer): without_mask(module, **kwargs)}), layer
            )
            act = partial(lambda layer, module, args, out: seen.update({("a", layer): out}), layer)
            handles.append(block.self_attn.register_forward_pre_hook(see, with_kwargs=True))
            handles.append(block.mlp.act_fn.register_forward_hook(act))
        total, count = torch.zeros(len(FIVE), len(GROUPS), len(blocks), blocks[0].mlp.down_proj.in_features), 0
        with torch.no_grad():
            for one in examples(task, turn):
                inputs = model.to_inputs(one.text, images=one.images)
                eager(**inputs.kwargs(), use_cache=False)
                total += scored(seen, inputs, len(blocks))
                count += 1
        for handle in handles:
            handle.remove()
        return dict(zip(FIVE, total / count, strict=True))

    return run


def scored(seen, inputs, depth):
    """Return the five scores [score, group, layer, unit] of one example, scaled by the least and largest of a layer."""
    found = []
    for layer in range(depth):
        for group in GROUPS:
            where = inputs.mask(group)[0]
            a, s = seen["a", layer][0][where], seen["s", layer][where][:, where]
            by_key, by_query = torch.softmax(s, 0).T @ a, torch.softmax(s, 1) @ a
            scores = torch.stack([(a > 0).float().mean(0), a.mean(0), a.amax(0), by_key.sum(0), by_query.sum(0)])
            low, high = scores.amin(-1, keepdim=True), scores.amax(-1, keepdim=True)
            found.append((scores - low) / (high - low))
    return torch.stack(found, dim=1).unflatten(1, (depth, len(GROUPS))).transpose(1, 2).float().cpu()


def without_mask(attention, hidden_states, position_embeddings, **others):
    """Return the mean over heads of the softmax over all keys, the causal mask left out."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    shape = (*hidden_states.shape[:-1], -1, attention.head_dim)
    query, key = (part(hidden_states).view(shape).transpose(1, 2) for part in (attention.q_proj, attention.k_proj))
    query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
    return torch.softmax(query @ key.transpose(2, 3) * attention.scaling, dim=-1)[0].mean(0)
