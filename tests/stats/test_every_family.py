"""In every family, statistics of a batch of several rows are those of its rows alone, module by module."""

import contextlib
import gc

import torch
from support import questions

import mmlens
from mmlens.hooks import neuron_hook
from mmlens.stats import Accumulator, SampleStats, TokenStats, TopExamples


def rows_of(model):
    """Return examples of one, two and no media, those that the model takes, each with a label of its own."""
    found = []
    for text, media in [*questions(model, "mixed"), *questions(model, "two", first=5)]:
        with contextlib.suppress(ValueError):
            model.to_inputs(text, **media)
            found.append(mmlens.Example(text, **media, label=f"row {len(found)}"))
    return found


def test_a_batch_is_counted_as_its_rows_alone(model):
    examples = rows_of(model)
    assert len(examples) >= 2
    labels, modules = [one.label for one in examples], tuple(model.widths)
    accumulators = {
        "all": TokenStats(model.widths, labels=labels, modules=modules),
        "media": TokenStats(model.widths, labels=labels, modules=modules, groups=["image+video+audio"], statistics=("sum",)),
    }
    found = mmlens.sweep(model, examples, accumulators, batch_size=len(examples), progress=False)
    for place, one in enumerate(examples):
        inputs = model.to_inputs(one.text, images=one.images, audio=one.audio, videos=one.videos)
        names = {(m, l): neuron_hook(m, l, "post") for m in modules for l in range(len(model.widths[m]))}
        with torch.no_grad():
            _, cache = model.run_with_cache(inputs, names_filter=set(names.values()).__contains__)
        for (module, layer), name in names.items():
            width = model.widths[module][layer]
            mine = found["all"]
            if name not in cache:  # a row without media runs no tower
                assert mine.tokens[module][place, 0] == 0
                continue
            values = cache[name]
            rows, kinds = inputs.held(module, values.shape[:-1])
            media = torch.isin(kinds, torch.tensor([2, 3, 4])) & (rows >= 0)
            for own, statistics in ((rows >= 0, mine), (media, found["media"])):
                assert statistics.tokens[module][place, 0] == own.sum()
                total = statistics.totals["sum"][module][place, 0, layer, :width]
                expected = values[own].double().sum(0)
                torch.testing.assert_close(total, expected.cpu(), rtol=2e-4, atol=2e-4)
            largest = mine.totals["max"][module][place, 0, layer, :width]
            torch.testing.assert_close(largest, values[rows >= 0].amax(0).double().cpu(), rtol=2e-5, atol=2e-5)


def test_attention_weights_of_towers_and_language_model_are_those_of_each_example_alone(model):
    """attn_k and attn_q written with full patterns, one example and one medium or tile at a time."""
    modules = [module for module in model.widths if module in ("language", "vision", "audio")]
    examples = rows_of(model)[:3]
    labels = [one.label for one in examples]
    scores = SampleStats(model.widths, labels=labels, modules=modules, statistics=("attn_k", "attn_q", "mean"))
    found = mmlens.sweep(model, examples, {"all": scores}, batch_size=3, progress=False)["all"]
    for place, one in enumerate(examples):
        inputs = model.to_inputs(one.text, images=one.images, audio=one.audio, videos=one.videos)
        for module in modules:
            before = "" if module == "language" else f"{module}."
            names = [f"{before}blocks.0.attn.hook_pattern", f"{before}blocks.0.mlp.hook_post"]
            with torch.no_grad():
                _, cache = model.run_with_cache(inputs, names_filter=set(names).__contains__)
            if names[1] not in cache:
                continue
            pattern, values = cache[names[0]].double().mean(1), cache[names[1]].double()
            rows, _ = inputs.held(module, values.shape[:-1])
            values, rows = values.reshape(*pattern.shape[:2], -1), rows.reshape(pattern.shape[:2])
            attn_k = attn_q = 0
            for s, a, own in zip(pattern, values, rows >= 0, strict=True):
                s, a = s[own][:, own], a[own]
                attn_k = attn_k + ((s / s.sum(0)).T @ a).sum(0)
                attn_q = attn_q + ((s / s.sum(1, keepdim=True)) @ a).sum(0)
            for name, expected in (("attn_k", attn_k), ("attn_q", attn_q)):
                mine = found.totals[name][module][place, 0, 0, : values.shape[-1]]
                torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-3)


class Looking(Accumulator):
    """Looks, after a run and before it is counted, for what is held that is as large as positions x units of a layer."""

    def __init__(self, size):
        super().__init__()
        self.size, self.large = size, []

    def recipe(self):
        return {"is": "Looking"}

    def observe(self, model, batch):
        kept = {id(weight) for weight in [*model.hf_model.parameters(), *model.hf_model.buffers()]}
        tensors = [one for one in gc.get_objects() if isinstance(one, torch.Tensor) and one.numel() >= self.size]
        self.large += [list(one.shape) for one in tensors if id(one) not in kept and one.shape[-1:] != (3,)]

    def result(self, model):
        return mmlens.Neurons.of([(0, 0)], model.widths)


def test_nothing_of_the_size_of_a_layers_activations_is_held_after_a_run(small):
    """1,200 positions of 48 units; the logits, vocabulary x positions, are gone by then too."""
    text = "the red car " * 400
    made = {
        "tokens": TokenStats(small.widths, groups=("text", "all")),
        "samples": SampleStats(small.widths, groups=("text", "all"), statistics=("mean", "max", "probability")),
        "top": TopExamples(small.widths),
    }
    looking = Looking(1200 * 48)
    gc.collect()
    before = [one for one in gc.get_objects() if isinstance(one, torch.Tensor) and one.numel() >= looking.size]
    mmlens.sweep(small, [mmlens.Example(text)], {**made, "looking": looking}, progress=False)
    assert looking.examples == 1
    assert len(looking.large) <= len(before), looking.large
