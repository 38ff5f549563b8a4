"""Statistics of neurons written out in numpy from their formulas, a loop over examples at a time, and random batches."""

import numpy as np
import torch
from hypothesis import strategies as st

from mmlens.inputs import MODALITIES, Inputs
from mmlens.stats import Batch

GROUPS = ("all", "image", "text+special", "answer", "prompt", "image+text")


def batch(seed, rows, length, labels, first=0):
    """Return a batch of random modalities, left padding and answers, as if it were of some data set's examples."""
    random = np.random.default_rng(seed)
    modality = random.integers(0, MODALITIES.index("pad"), (rows, length))
    answer = np.zeros((rows, length), dtype=bool)
    for row in range(rows):
        modality[row, : random.integers(0, length)] = MODALITIES.index("pad")
        answer[row, length - random.integers(0, length) :] = True
    answer &= modality != MODALITIES.index("pad")
    inputs = Inputs(
        text=("",) * rows,
        tokens=torch.tensor(random.integers(0, 9, (rows, length))),
        attention_mask=torch.tensor((modality != MODALITIES.index("pad")).astype(int)),
        modality=torch.tensor(modality),
        medium=torch.full((rows, length), -1),
        answer=torch.tensor(answer),
        tower={},
        grids=((),) * rows,
        media=((),) * rows,
    )
    places = tuple(range(first, first + rows))
    return Batch(inputs, tuple(random.choice(labels, rows).tolist()), tuple(map(str, places)), places)


def activations(seed, batch, widths):
    """Return random activations [batch, pos, unit] of each layer, many of them equal, and anything at all at padding."""
    random = np.random.default_rng(seed)
    rows, length = batch.inputs.tokens.shape
    values = [random.integers(-3, 4, (rows, length, width)) / 2 + random.integers(0, 2) * 1e-3 for width in widths]
    return [torch.tensor(value, dtype=torch.float32) for value in values]


def feed(accumulator, model, batch, values, patterns=None):
    """Run a batch through an accumulator's hooks, as a model would call them."""
    for name, read in accumulator.hooks(model, batch):
        layer = int(name.split(".")[1])
        assert read((patterns if "pattern" in name else values)[layer], hook=None) is None
    accumulator.update()


def positions(batch, row, group):
    """Return where a row has a group, going through its positions."""
    inputs, found = batch.inputs, []
    for position in range(inputs.tokens.shape[1]):
        kind = MODALITIES[int(inputs.modality[row, position])]
        if kind == "pad":
            continue
        answered = bool(inputs.answer[row, position])
        kinds = {kind, "all", "answer" if answered else "prompt"}
        if kinds & set(group.split("+")):
            found.append(position)
    return found


def token_statistics(pairs, labels, groups, widths):
    """Return count, sum, max [label, group, layer, unit]; positions and examples [label, group]."""
    shape = (len(labels), len(groups), len(widths), max(widths))
    count, total, largest = np.zeros(shape, int), np.zeros(shape), np.full(shape, -np.inf)
    tokens, samples = np.zeros(shape[:2], int), np.zeros(shape[:2], int)
    for batch, values in pairs:
        for row in range(len(batch.inputs)):
            label = labels.index(batch.labels[row]) if labels != ["all"] else 0
            for column, group in enumerate(groups):
                where = positions(batch, row, group)
                tokens[label, column] += len(where)
                samples[label, column] += bool(where)
                for layer, width in enumerate(widths):
                    for position in where:
                        value = values[layer][row, position].numpy().astype(np.float64)
                        count[label, column, layer, :width] += value > 0
                        total[label, column, layer, :width] += value
                        largest[label, column, layer, :width] = np.maximum(largest[label, column, layer, :width], value)
    return count, total, largest, tokens, samples


def sample_statistics(pairs, labels, groups, widths, *, normalise=None, renorm="l1"):
    """Return the sums over examples of each example's statistics, written as methods.md 4.c has them, with full products."""
    shape = (len(labels), len(groups), len(widths), max(widths))
    names = ("probability", "mean", "max", "attn_k", "attn_q")
    total, samples = {name: np.zeros(shape) for name in names}, np.zeros(shape[:2], int)

    def norm(matrix, axis):
        matrix = np.exp(matrix) if renorm == "softmax" else matrix
        return matrix / matrix.sum(axis, keepdims=True)

    for batch, values, patterns in pairs:
        for row in range(len(batch.inputs)):
            label = labels.index(batch.labels[row]) if labels != ["all"] else 0
            for column, group in enumerate(groups):
                if not (where := positions(batch, row, group)):
                    continue
                samples[label, column] += 1
                for layer, width in enumerate(widths):
                    a = values[layer][row].numpy().astype(np.float64)[where]
                    s = patterns[layer][row].numpy().astype(np.float64)[where][:, where]
                    scores = {
                        "probability": (a > 0).mean(0),
                        "mean": a.mean(0),
                        "max": a.max(0),
                        "attn_k": (norm(s, 0).T @ a).sum(0),
                        "attn_q": (norm(s, 1) @ a).sum(0),
                    }
                    for name, score in scores.items():
                        if normalise == "minmax":
                            spread = score.max() - score.min()
                            score = (score - score.min()) / spread if spread > 1e-10 else np.zeros_like(score)
                        total[name][label, column, layer, :width] += score
    return total, samples


BATCHES = st.lists(st.tuples(st.integers(0, 99), st.integers(1, 4), st.integers(1, 7)), min_size=1, max_size=4)
