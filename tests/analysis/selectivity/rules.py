"""The papers' rules as loops over neurons, and statistics of random numbers to try them on; nothing here chooses by mmlens.

Numbers are multiples of 1/8 where that is possible, so that equal ones are equal in whatever order they are added.
"""

import math
from itertools import product

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st

from mmlens.results import Provenance
from mmlens.stats import Statistics

WIDTHS = st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple)  # of the layers of a module
NAMES = ("dawn", "day", "dusk", "night")
MADE = Provenance("made up", None, "0", ("nothing",), {}, None, {}, "today")
rules = settings(max_examples=60, deadline=None)


def everyone(widths, layers=None):
    return [(layer, unit) for layer, width in enumerate(widths[:layers]) for unit in range(width)]


def pairs(neurons):
    """Return what a set of neurons of one module holds, in its order."""
    return list(zip(neurons.layer.tolist(), neurons.unit.tolist(), strict=True))


def probabilities(seed, labels, widths):
    """Return [label, layer, unit]: many equal neurons, some that never are active, some that are under one label only.

    Neurons differ in entropy by more than rounding, or are equal, or have an entropy of 0. There is NaN beyond the widths.
    """
    random = np.random.default_rng(seed)
    pool = [np.zeros(labels), *(np.eye(labels)[random.integers(labels)] * random.integers(1, 17) / 16 for _ in range(2))]
    seen = {0.0}
    for one in random.integers(0, 17, (12, labels)) / 16:
        if (value := round(entropy(one), 9)) not in seen:
            seen.add(value)
            pool.append(one)
    found = np.full((labels, len(widths), max(widths)), np.nan)
    for layer, unit in everyone(widths):
        found[:, layer, unit] = pool[random.integers(len(pool))]
    return found


def entropy(probability):
    """Methods C3: p' = p / sum_i p, - sum_i p' ln p'; NaN for one that never is active."""
    total = sum(map(float, probability))
    return -sum(p / total * math.log(p / total) for p in map(float, probability) if p) if total else math.nan


def low_entropy(probability, widths, *, rate, filter_quantile, bar_quantile, layers=None):
    """Return, for each label, its neurons (layer, unit): methods C4 to C6."""
    own = everyone(widths, layers)
    values = sorted(float(one[place]) for one in probability for place in own)

    def smallest(quantile):
        k = round(quantile * len(values))
        return values[max(k, 1) - 1]

    left = {}
    for place in own:
        active = [float(one[place]) for one in probability]
        if max(active) > smallest(filter_quantile) and not math.isnan(entropy(active)):
            left[place] = entropy(active)
    chosen = sorted(left, key=lambda place: (left[place], place))[: round(rate * len(own))]
    return [[place for place in chosen if one[place] > smallest(bar_quantile)] for one in probability]


def importances(seed, groups, widths):
    """Return [group, layer, unit], many of them equal, with NaN beyond the widths."""
    found = np.random.default_rng(seed).integers(0, 9, (groups, len(widths), max(widths))) / 8
    for layer, width in enumerate(widths):
        found[:, layer, width:] = np.nan
    return found


class TooFew(Exception):
    pass


def by_quota(importance, widths, *, ratio, strategy, exact=True, layers=None):
    """Return, for each group, its neurons (layer, unit): methods 4.e."""
    own, groups = everyone(widths, layers), range(len(importance))
    k = int(ratio * len(own))

    def best_first(picks):
        return sorted(picks, key=lambda pick: (-importance[pick], pick))

    if strategy == "adaptive":
        total = {place: sum(importance[group, *place] for group in groups) for place in own}
        top = sorted(own, key=lambda place: (-total[place], place))[:k]
        picks = [(max(groups, key=lambda group: (importance[group, *place], -group)), *place) for place in top]
    else:
        shares = {}
        for group, (layer, unit) in product(groups, own):
            share = {"adaptive_joint": 0, "LA_MU": group, "LU_MA": layer, "uniform": (group, layer)}[strategy]
            shares.setdefault(share, []).append((group, layer, unit))
        each, rest = divmod(k, len(shares))
        if each + bool(rest and exact) > min(map(len, shares.values())):
            raise TooFew
        picks, following = [], []
        for share in shares.values():
            picks += best_first(share)[:each]
            following += best_first(share)[each : each + 1]
        picks += best_first(following)[: rest if exact else 0]
    return [[place for group, *place in map(tuple, best_first(picks)) if group == one] for one in groups]


def by_tokens(seed, labels, groups, widths, live=None):
    """Return statistics by tokens of random counts, as if each label had some tokens of each group."""
    random = np.random.default_rng(seed)
    by = (len(labels), len(groups))
    tokens = {module: random.integers(20, 40, by) for module in widths}
    samples = {module: random.integers(1, 5, by) for module in widths}
    count, total = {}, {}
    for module, own in widths.items():
        often = random.random((*by, len(own), max(own))) ** 3 * (random.random((len(own), max(own))) > 0.2)
        count[module] = random.binomial(tokens[module][..., None, None], often)
        total[module] = count[module] / 8
        for layer, width in enumerate(own):
            count[module][..., layer, width:], total[module][..., layer, width:] = 0, 0
    return statistics("tokens", labels, groups, widths, live, {"count": count, "sum": total}, tokens, samples)


def by_samples(seed, labels, groups, widths, live=None, *, names=("probability", "mean", "max", "attn_k", "attn_q")):
    """Return statistics by samples of random sums, as if some labels had no example with some of the groups but the last."""
    random = np.random.default_rng(seed)
    by = (len(labels), len(groups))
    totals = {name: {} for name in names}
    samples = {module: random.integers(0, 4, by) for module in widths}
    for module, own in widths.items():
        samples[module][:, -1] += 4
        for name in names:
            total = random.integers(0, 9, (*by, len(own), max(own))) / 8 * samples[module][..., None, None]
            for layer, width in enumerate(own):
                total[..., layer, width:] = 0
            totals[name][module] = total
    return statistics("samples", labels, groups, widths, live, totals, samples, samples)


def statistics(weighting, labels, groups, widths, live, totals, tokens, samples):
    return Statistics(
        weighting=weighting,
        site="gate_act",
        labels=tuple(labels),
        groups=tuple(groups),
        widths=dict(widths),
        live=live or {module: len(own) for module, own in widths.items()},
        totals={name: tensors(one) for name, one in totals.items()},
        tokens=tensors(tokens),
        samples=tensors(samples),
        short={module: torch.zeros(len(labels), len(groups), dtype=torch.int64) for module in widths},
        provenance=MADE,
    )


def tensors(arrays):
    return {module: torch.tensor(array) for module, array in arrays.items()}
