"""Figures of sets of neurons by label, of their stability and of a matrix of interventions show what the results hold."""

from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from matplotlib.colors import same_color
from support import picture

import mmlens
from mmlens import Neurons, plot
from mmlens.analysis import Selection, Stability, turning_points
from mmlens.plot.canvas import RANDOM, Canvas, png
from mmlens.results import Provenance

DEPTH, WIDTH = 9, 40
NAMES = ("nature photo", "street photo", "document $page$", "satellite image", "medical scan")


def selected(counts, *, shift=2, module="language", depth=DEPTH):
    """Return sets with so many neurons in each layer, which share some: those of a label begin at its place x shift."""
    widths = {module: (WIDTH,) * depth}
    sets = {
        name: Neurons.of(
            [(module, layer, place * shift + unit) for layer, count in enumerate(own) for unit in range(count)], widths
        )
        for place, (name, own) in enumerate(counts.items())
    }
    provenance = Provenance("tiny", None, "0" * 16, (), {}, None, {}, "2026-01-01T00:00:00+00:00")
    return Selection(module=module, sets=sets, score=torch.zeros(depth, WIDTH), provenance=provenance)


@pytest.fixture(scope="module")
def five():
    generator = torch.Generator().manual_seed(0)
    return selected({name: torch.randint(0, 12, (DEPTH,), generator=generator).tolist() for name in NAMES})


def curve(line):
    return torch.as_tensor(np.asarray(line.get_ydata(), dtype=float))


def test_a_selection_draws_each_labels_count_by_layer_with_its_total_and_turning_points_and_how_many_sets_hold_a_neuron(
    five,
):
    figure = plot.selection(five)
    (curves, sharing), (legend,) = figure.axes, figure.legends
    assert isinstance(figure, Canvas) and "our rule, not the paper's" in legend.get_title().get_text()
    told = [text.get_text() for text in legend.get_texts()]
    counts = five.counts()
    for index, name in enumerate(NAMES):
        first, second = turning_points(counts[index].float())
        shown = name.replace("$", r"\$")
        assert told[index] == f"{shown}: {len(five[name])}, turns at {first} and {second}"
        own, *turns = [line for line in curves.lines if same_color(line.get_color(), curves.lines[3 * index].get_color())]
        assert torch.equal(curve(own).long(), counts[index])
        assert [line.get_xdata()[0] for line in turns] == [first, second]
    assert (
        len({line.get_color() for line in curves.lines}) == len({line.get_marker() for line in curves.lines} - {"None"}) == 5
    )
    heights = [bar.get_height() for bar in sharing.patches]
    assert heights == five.memberships().tolist() and sum(heights) == len(five.union())
    assert [text.get_text() for text in sharing.texts] == [str(height) for height in heights]
    assert curves.get_title() == f"{len(five.union())} different neurons of language"
    assert (curves.get_xlabel(), curves.get_ylabel()) == ("layer", "neurons")
    assert (sharing.get_xlabel(), sharing.get_ylabel()) == ("in exactly so many sets", "neurons")


def test_turning_points_are_left_out_where_asked_of_few_layers_and_of_layers_behind_the_last_that_has_a_neuron(five):
    assert len(plot.selection(five, turning=False).axes[0].lines) == 5
    few = selected({"a": [3, 2, 1, 4], "b": [0, 0, 2, 2]}, module="vision", depth=4)
    figure = plot.selection(few)
    assert len(figure.axes[0].lines) == 2 and figure.legends[0].get_title().get_text() == "neurons in all"
    own = [9, 3, 1, 1, 8, 9]
    unread = selected({"a": [*own, 0, 0, 0], "none": [0] * DEPTH}, module="vision")
    _, *turns, none = plot.selection(unread).axes[0].lines
    assert [line.get_xdata()[0] for line in turns] == list(turning_points(torch.tensor(own).float()))
    assert none.get_label() == "none: 0"


def test_a_random_set_is_grey_and_no_neurons_at_all_are_drawn_too():
    drawn = plot.selection(selected({"random": [3] * DEPTH}))
    assert all(same_color(line.get_color(), RANDOM) for line in drawn.axes[0].lines)
    nothing = selected({"a": [0] * DEPTH, "b": [0] * DEPTH})
    for figure in (plot.selection(nothing), plot.overlaps(nothing), plot.overlaps(selected({"random": [3] * DEPTH}))):
        assert png(figure)


def drawn_at_random(found, *, draws=60):
    """Return the mean Jaccard by layer of random sets with as many neurons as every two labels have there."""
    generator, shares = torch.Generator().manual_seed(1), []
    for sizes in combinations(found.counts().tolist(), 2):
        ours, theirs = (
            torch.stack([torch.rand(draws, WIDTH, generator=generator).argsort(1) < size for size in own]) for own in sizes
        )
        shares.append(((ours & theirs).sum(-1) / (ours | theirs).sum(-1)).mean(1))
    return torch.stack(shares).nanmean(0)


def test_overlaps_write_what_two_sets_share_with_their_sizes_and_draw_its_mean_by_layer_beside_chance(five):
    table, curves, _ = plot.overlaps(five).axes
    shared = five.jaccard()
    np.testing.assert_allclose(np.asarray(table.images[0].get_array()), shared)
    written = {text.get_position(): float(text.get_text()) for text in table.texts}
    assert written == {(b, a): pytest.approx(float(shared[a, b]), abs=0.006) for a in range(5) for b in range(5)}
    sizes = [f"{name} ({len(own)})".replace("$", r"\$") for name, own in five.sets.items()]
    for axis in (table.get_xticklabels(), table.get_yticklabels()):
        assert [label.get_text() for label in axis] == sizes
    pairs = list(combinations(range(5), 2))
    assert table.images[0].get_clim() == (0, pytest.approx(max(float(shared[pair]) for pair in pairs)))
    by_layer = five.jaccard_by_layer()
    own, chance = (curve(line) for line in curves.lines)
    torch.testing.assert_close(own, torch.stack([by_layer[:, a, b] for a, b in pairs]).nanmean(0).double())
    assert table.get_title() == "shared by two sets (Jaccard)"
    assert (curves.get_xlabel(), curves.get_ylabel()) == ("layer", "mean Jaccard of two sets")
    assert curves.lines[0].get_label() == "mean of 10 pairs" and same_color(curves.lines[1].get_color(), RANDOM)
    torch.testing.assert_close(chance, drawn_at_random(five).double(), atol=0.02, rtol=0)


def test_pairs_without_a_neuron_in_a_layer_do_not_count_there():
    found = selected({"a": [4, 0, 4], "b": [4, 0, 4], "c": [0, 0, 4]}, depth=3)
    own, chance = (curve(line) for line in plot.overlaps(found).axes[1].lines)
    # shares in layer 0: 2 of 6, and none with c; in layer 2: 2 of 6, 2 of 6, 0 of 8
    assert own[0] == pytest.approx(1 / 9) and own[1].isnan() and chance[1].isnan() and own[2] == pytest.approx(2 / 9)


def test_stability_is_thin_to_all_thick_to_others_and_grey_by_chance():
    nan = torch.nan
    found = Stability(
        labels=("image", "text"),
        examples=(10, 20, 30, 40),
        to_all=torch.tensor([[0.2, 0.3], [0.4, 0.5], [0.6, 0.7], [1.0, 1.0]]),
        to_others=torch.tensor([[0.1, 0.2], [0.3, 0.4], [nan, nan], [nan, nan]]),
        chance=torch.tensor([[0.01, 0.02], [0.03, 0.04], [nan, nan], [nan, nan]]),
    )
    figure = plot.stability(found)
    (axes,), (legend,) = figure.axes, figure.legends
    lines = axes.lines[:6]
    for index, name in enumerate(found.labels):
        chance, thin, thick = lines[3 * index : 3 * index + 3]
        for line, values in ((chance, found.chance), (thin, found.to_all), (thick, found.to_others)):
            torch.testing.assert_close(curve(line), values[:, index].double(), equal_nan=True)
            assert list(line.get_xdata()) == [10, 20, 30, 40]
        assert same_color(chance.get_color(), RANDOM) and thick.get_color() == thin.get_color()
        assert thick.get_linewidth() > 2 > 1 >= thin.get_linewidth() and thick.get_label() == name
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("examples", "neurons shared (Jaccard)")
    told = [text.get_text() for text in legend.get_texts()]
    assert told[2:] == ["to those of all 40 examples", "to those of as many others", "random sets of these sizes"]


@pytest.fixture(scope="module")
def evaluation(small):
    """Two interventions on three tasks: the second runs on the task of its name alone."""
    examples = [
        mmlens.Example("a red car", images=picture(place), answers=("tree",), label="abc"[place % 3]) for place in range(12)
    ]
    units = [(0, unit) for unit in range(20)]
    sets = {"all at once": Neurons.of(units, small.widths), "b": Neurons.of(units[:9], small.widths)}
    return mmlens.evaluate(small, examples, "log_prob", sets, draws=2, progress=False)


def cells(axes):
    """Return what is written in each cell, (row, column), from the top."""
    found = {}
    for text in axes.texts:
        column, row = text.get_position()
        found.setdefault((round(row), column), []).append(text.get_text())
    return found


def test_a_matrix_writes_each_change_with_that_of_its_random_controls_and_frames_the_task_of_its_name(evaluation):
    figure = plot.evaluation_matrix(evaluation, resamples=99)
    axes, table = figure.axes[0], evaluation.table(resamples=99)
    rows = [label.get_text() for label in axes.get_yticklabels()]
    columns = [label.get_text() for label in axes.get_xticklabels()]
    assert rows == ["all at once", "b"] and columns == ["b", "a", "c"]
    assert axes.get_title() == "change of mean log_prob (nats)"
    colors = np.asarray(axes.images[0].get_array())
    assert axes.images[0].get_clim() == (-abs(colors).max(), abs(colors).max())
    assert axes.images[0].get_cmap().name == "RdBu" and (axes.get_xlabel(), axes.get_ylabel()) == ("task", "intervention")
    written = cells(axes)
    for (row, name), (column, task) in ((r, c) for r in enumerate(rows) for c in enumerate(columns)):
        own, drawn = table.loc[(name, task)]["difference"], table.loc[(f"{name} (random)", task)]["difference"]
        assert colors[row, column] == own
        step = 10.0 ** -len(written[row, column][0].split(".")[1])
        assert [float(text) for text in written[row, column]] == pytest.approx([own, drawn], abs=0.51 * step)
    assert len({text for text, _ in written.values()}) > 2, "digits enough to tell them apart"
    (frame,) = axes.patches
    assert (frame.get_x(), frame.get_y()) == (-0.5, 0.5)


def test_a_dot_marks_what_is_below_a_corrected_p_of_5_percent(evaluation, monkeypatch):
    table = evaluation.table(resamples=99)
    table["p_corrected"] = 0.05
    table.loc[("all at once", "c"), "p_corrected"] = 0.049
    monkeypatch.setitem(evaluation._tables, (99, 0), table)
    (dot,) = plot.evaluation_matrix(evaluation, resamples=99).axes[0].lines
    assert [round(float(value[0])) for value in dot.get_data()] == [2, 0]


def test_a_matrix_against_random_controls_has_no_second_number_and_empty_cells_are_grey(small, evaluation):
    axes = plot.evaluation_matrix(evaluation, what="to_random", resamples=99).axes[0]
    assert "less that of its random controls" in axes.get_title() and all(len(cell) == 1 for cell in cells(axes).values())
    expected = evaluation.matrix("to_random", resamples=99)[["b", "a", "c"]]
    np.testing.assert_array_equal(np.asarray(axes.images[0].get_array()), expected)
    examples = [mmlens.Example("a red", images=picture(n), answers=("red",), label="ab"[n % 2]) for n in range(4)]
    sets = {"b": Neurons.of([(0, 1)], small.widths)}
    options = dict(draws=0, off_diagonal=False, max_new_tokens=2, progress=False)
    own = mmlens.evaluate(small, examples, "exact_match", sets, **options)
    axes = plot.evaluation_matrix(own, resamples=99).axes[0]
    assert list(cells(axes)) == [(0, 0)] and axes.get_title() == "change of mean exact_match (0 to 1)"
    assert np.ma.getmaskarray(axes.images[0].get_array()).tolist() == [[False, True]]
    with pytest.raises(ValueError, match="no to_random in this table"):
        plot.evaluation_matrix(own, what="to_random", resamples=99)


def test_a_matrix_of_something_that_has_no_zero_is_refused(evaluation):
    with pytest.raises(Exception, match="difference"):
        plot.evaluation_matrix(evaluation, what="mean")


def boxes(figure):
    """Return where words of a figure stand, in pixels, when it is drawn."""
    figure.draw_without_rendering()
    parts = [figure, *figure.axes, *figure.legends]
    texts = [text for part in parts for text in getattr(part, "texts", [])]
    for axes in figure.axes:
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    for legend in figure.legends:
        texts += [*legend.get_texts(), legend.get_title()]
    return {text: text.get_window_extent() for text in texts if text.get_text() and text.get_visible()}


@pytest.mark.parametrize("name", ["selection", "overlaps", "evaluation_matrix", "a matrix of one task"])
def test_words_stand_within_the_figure_and_long_names_beside_each_other(five, evaluation, name):
    if "matrix" in name:
        shown = evaluation if name == "evaluation_matrix" else replace(evaluation, tasks=("b",) * 12)
        figure = plot.evaluation_matrix(shown, resamples=99)
    else:
        figure = getattr(plot, name)(five)
    found = boxes(figure)
    width, height = figure.bbox.width, figure.bbox.height
    for text, box in found.items():
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, text.get_text()
    for axes in figure.axes:
        rows = sorted((found[label] for label in axes.get_yticklabels() if label in found), key=lambda box: box.y0)
        assert all(below.y1 <= above.y0 + 1 for below, above in pairwise(rows))
