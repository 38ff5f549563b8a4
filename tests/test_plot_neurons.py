"""Figures of scores, fields, classes, conditions and edits show what the results hold, beside their random controls."""

from itertools import combinations

import numpy as np
import pytest
import torch
from matplotlib.colors import same_color
from support import picture

from mmlens import Neurons, plot, top_k
from mmlens.analysis import (
    Region,
    ablation_conditions,
    activation_score,
    agreement,
    class_selectivity,
    concept_overlap,
    fit_edit,
    grad_x_activation,
    random_score,
)
from mmlens.plot.canvas import OURS, RANDOM


def curve(line):
    return torch.as_tensor(np.asarray(line.get_ydata())).double()


def labelled(axes):
    return {line.get_label(): curve(line) for line in axes.lines if not line.get_label().startswith("_")}


@pytest.fixture(scope="module")
def inputs(small):
    return small.to_inputs("what is in the picture ?", images=picture(0))


@pytest.fixture(scope="module")
def token(small):
    return torch.tensor([small.to_token("car")])


@pytest.fixture(scope="module")
def scores(small, inputs, token):
    return {
        "gradient": grad_x_activation(small, inputs, token).scores[0],
        "activation": activation_score(small, inputs)[0],
        "$random": random_score(small, 0),
    }


def test_agreement_writes_each_overlap_above_its_shuffles_and_draws_each_pairs_ranks_between_those_of_shuffles(scores):
    result = agreement(scores, k=10, draws=20)
    table, curves = plot.agreement(result).axes[:2]
    assert [label.get_text() for label in table.get_xticklabels()] == ["gradient", "activation", r"\$random"]
    torch.testing.assert_close(torch.as_tensor(table.images[0].get_array().filled()), result.overlap)
    assert table.get_title() == "share of the 10 highest neurons in common" and table.images[0].get_clim() == (0, 1)
    assert (curves.get_xlabel(), curves.get_ylabel()) == ("layer", "rank correlation of a layer's neurons")
    cells = {}
    for text in table.texts:
        column, row = text.get_position()
        cells.setdefault((round(row), column), []).append(text.get_text())
    for (row, column), (own, null) in cells.items():
        assert float(own) == pytest.approx(float(result.overlap[row, column]), abs=0.006)
        shuffled = [float(line.split()[-1]) for line in null.split("\n")]
        truth = [float(result.overlap_null[row, column]), float(result.overlap_bar[row, column])]
        assert shuffled == pytest.approx(truth, abs=0.006)
    assert len(cells) == 9
    drawn = labelled(curves)
    grey = [curve(line) for line in curves.lines if same_color(line.get_color(), RANDOM)]
    names = ("gradient", "activation", r"\$random")
    for index, (a, b) in enumerate(combinations(range(3), 2)):
        torch.testing.assert_close(drawn[f"{names[a]} and {names[b]}"], result.spearman[a, b], equal_nan=True)
        torch.testing.assert_close(grey[2 * index], result.spearman_bar[a, b], equal_nan=True)
        torch.testing.assert_close(grey[2 * index + 1], -result.spearman_bar[a, b], equal_nan=True)
    assert curves.get_ylim()[0] < -1 and curves.get_ylim()[1] > 1


def test_one_score_agrees_with_itself_and_has_no_curve(scores):
    table, curves = plot.agreement(agreement({"gradient": scores["gradient"]}, k=5, draws=2)).axes[:2]
    assert table.texts[0].get_text() == "1.00" and not labelled(curves)


@pytest.fixture(scope="module")
def conditions(small, inputs, token, scores):
    neurons = top_k(scores["gradient"], 6, widths=small.widths)
    flags = torch.tensor([True, False, True, True, False, False])
    return ablation_conditions(small, inputs, token, neurons, flags, ks=[0, 1, 3, 6], draws=3)


def test_three_conditions_are_the_tables_and_random_ones_are_grey_with_their_range(conditions):
    (axes,) = plot.ablation_conditions(conditions, target="car").axes
    table, drawn = conditions.table(), labelled(axes)
    np.testing.assert_allclose(drawn["all"], table["all"])
    np.testing.assert_allclose(drawn["interpretable"], table["interpretable"].dropna())
    np.testing.assert_allclose(drawn["random, in the layers of all (3 draws)"], table["random"])
    few = conditions.interpretable.random_change().mean(-1)
    torch.testing.assert_close(drawn["random, in the layers of interpretable (3 draws)"], few.mean(0).double())
    lows, highs = (table["random_low"], few.amin(0)), (table["random_high"], few.amax(0))
    for band, low, high, ks in zip(axes.collections, lows, highs, ([0, 1, 3, 6], [0, 1, 3]), strict=True):
        corners = band.get_paths()[0].vertices
        for k, least, most in zip(ks, low, high, strict=True):
            heights = corners[corners[:, 0] == k][:, 1]
            assert (heights.min(), heights.max()) == pytest.approx((float(least), float(most)), abs=1e-6)
        assert same_color(band.get_facecolor()[0][:3], RANDOM)
    assert axes.get_ylabel() == "relative change of P(car)\n(mean of 1)" and list(axes.get_xticks()) == [0, 1, 3, 6]
    assert axes.get_xlabel() == "neurons switched off (number)"


def test_conditions_without_draws_have_no_grey(small, inputs, token, scores):
    neurons = top_k(scores["gradient"], 2, widths=small.widths)
    result = ablation_conditions(small, inputs, token, neurons, torch.tensor([True, True]), ks=[0, 2], draws=0)
    (axes,) = plot.ablation_conditions(result).axes
    assert set(labelled(axes)) == {"all", "interpretable"} and not axes.collections


def test_overlaps_are_the_tables_by_concept_with_every_example_the_random_range_and_the_bound(small):
    masks = torch.zeros(3, 40, 50, dtype=torch.bool)
    masks[0, :20, :20], masks[1, 30:, 30:], masks[2, 5:15, 5:25] = True, True, True
    neurons = Neurons.of([(0, 1), (1, 4), (2, 2)], small.widths)
    regions = [
        Region(name, small.to_inputs("what is this ?", images=picture(index)), masks[index], neurons)
        for index, name in enumerate(("car", "tree", "car"))
    ]
    result = concept_overlap(small, regions, draws=4)
    table = result.table()
    (axes,) = plot.concept_overlap(result).axes
    names = [label.get_text().partition(" (n = ")[0] for label in axes.get_yticklabels()]
    assert names[0] == "all" and sorted(names[1:], key=lambda name: table.loc[name, "iou"]) == names[1:]
    means = [line for line in axes.lines if line.get_marker() == "o"]
    for level, (name, mean, bar) in enumerate(zip(names, means, axes.patches, strict=True)):
        row = table.loc[name]
        assert (mean.get_xdata()[0], mean.get_ydata()[0]) == (pytest.approx(row["iou"]), level)
        ends = (bar.get_x(), bar.get_x() + bar.get_width())
        assert ends == pytest.approx((row["random_low"], row["random_high"])) and same_color(bar.get_facecolor()[:3], RANDOM)
        random, bound = (marks.get_segments()[0][0, 0] for marks in axes.collections[2 * level : 2 * level + 2])
        assert (random, bound) == (pytest.approx(row["random"]), pytest.approx(row["bound"]))
    dots = {int(line.get_ydata()[0]): line.get_xdata() for line in axes.lines if line.get_marker() == "."}
    np.testing.assert_allclose(dots[names.index("car")], result.iou[[0, 2]])
    assert axes.get_yticklabels()[names.index("car")].get_text() == "car (n = 2)" and 0 not in dots
    told = "mean overlap (IoU) with the object\nrandom: 4 draws in the same layers, lowest mean to highest"
    assert axes.get_xlabel() == told


@pytest.fixture(scope="module")
def classes(small):
    sets = {
        name: Neurons.of([(layer, place), (1, place + 3)], small.widths)
        for place, (name, layer) in enumerate({"car": 0, "tree": 1, "sun": 2}.items())
    }
    pictures = [(name, small.to_inputs("what is this ?", images=picture(place))) for place, name in enumerate(sets)]
    return class_selectivity(small, sets, pictures, draws=5)


def test_the_matrix_of_classes_has_its_diagonal_framed_and_its_shares_and_controls_written(classes):
    axes, bar = plot.class_selectivity(classes).axes
    assert bar.get_ylabel() == "mean activation, share of the row's maximum"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("pictures of", "neurons of")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["car", "tree", "sun"]
    shares = classes.selectivity()
    torch.testing.assert_close(torch.as_tensor(axes.images[0].get_array().filled(np.nan)), shares, equal_nan=True)
    assert axes.images[0].get_clim() == (-1, 1)
    assert [(frame.get_x(), frame.get_y()) for frame in axes.patches] == [(place - 0.5, place - 0.5) for place in range(3)]
    empty = [text for text in axes.texts if text.get_text() == "nowhere above 0"]
    assert [text.get_position()[1] for text in empty] == shares.isnan().all(1).nonzero()[:, 0].tolist()
    for text in set(axes.texts) - set(empty):
        column, row = text.get_position()
        assert float(text.get_text()) == pytest.approx(float(shares[row, column]), abs=0.006)
    assert len(axes.texts) - len(empty) == int((~shares.isnan()).sum())
    for line in axes.lines:
        row = round(line.get_ydata()[0] + 0.38)
        assert line.get_xdata()[0] == int(classes.matrix()[row].argmax())
    random = classes.random_on_diagonal()
    title = axes.get_title()
    assert f"own class: {classes.on_diagonal():.0%} of the sets" in title
    assert f"random sets {random.mean():.0%} ({random.min():.0%} to {random.max():.0%}), chance 33%" in title


def test_an_edit_is_drawn_word_by_word_with_terms_that_add_up_beside_other_neurons(small, inputs, scores):
    own = top_k(scores["gradient"], 4, widths=small.widths)
    how = dict(steps=4, lr=0.05, stop=0.99, locality=small.to_inputs("the red car"))
    result = fit_edit(small, inputs, "car", "tree", own, **how)
    control = fit_edit(small, inputs, "car", "tree", own.random_like(seed=0), **how)
    words, loss = plot.edit(result, control=control).axes
    drawn = labelled(words)
    torch.testing.assert_close(drawn["tree: mean of 1 rows"], result.nll.mean(1).double())
    torch.testing.assert_close(drawn["car: mean of 1 rows"], result.source_nll.mean(1).double())
    thin = [curve(line) for line in words.lines if line.get_linewidth() < 1]
    torch.testing.assert_close(torch.stack(thin), torch.cat([result.nll.T, result.source_nll.T]).double())
    grey = [curve(line) for line in words.lines if same_color(line.get_color(), RANDOM)]
    torch.testing.assert_close(torch.stack(grey), torch.stack([control.nll.mean(1), control.source_nll.mean(1)]).double())
    bar = next(values for name, values in drawn.items() if name.startswith("stops below"))
    assert bar[0] == pytest.approx(-np.log(0.99))
    terms = [curve(line) for line in loss.lines if not same_color(line.get_color(), RANDOM)]
    assert len(terms) == 6 and same_color(loss.lines[-1].get_color(), OURS)
    torch.testing.assert_close(sum(terms[:-1]), terms[-1])
    torch.testing.assert_close(terms[-1], result.loss.double())
    torch.testing.assert_close(curve(loss.lines[0]), control.loss.double())
    assert f"4 other neurons (norm {control.norm:.1f})" in loss.lines[0].get_label()
    assert words.get_ylabel() == "-log P (nats)" and loss.get_ylabel() == "loss and its terms"
    assert words.get_xlabel() == loss.get_xlabel() == "step"
    assert words.get_title() == "car becomes tree" and f"{result.norm:.1f}" in loss.get_title()


def test_an_edit_alone_has_no_grey_no_bar_where_it_never_stops_and_no_locality_that_was_not_asked_for(small, inputs, scores):
    own = top_k(scores["gradient"], 4, widths=small.widths)
    words, loss = plot.edit(fit_edit(small, inputs, "car", "tree", own, steps=2, stop=None)).axes
    assert not any(same_color(line.get_color(), RANDOM) for axes in (words, loss) for line in axes.lines)
    assert not any(name.startswith("stops") for name in labelled(words))
    assert len(loss.lines) == 5
