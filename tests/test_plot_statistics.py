"""Figures of statistics by group and label show what the results hold, beside the random control, with n in the title."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.colors import same_color
from scipy.stats import ttest_1samp
from support import ask, picture

from mmlens import Neurons, plot
from mmlens.analysis import lens_entropy, media_geometry, stream_change
from mmlens.plot.canvas import OURS, RANDOM
from mmlens.plot.curves import GROUPS


def curve(line):
    return torch.as_tensor(np.asarray(line.get_ydata())).float()


def named(axes):
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def bands(axes):
    """Return (low, high) of each band by layer."""
    found = []
    for band in axes.collections:
        corners = band.get_paths()[0].vertices
        layers = sorted(set(corners[:, 0]))
        found.append([(corners[corners[:, 0] == at][:, 1].min(), corners[corners[:, 0] == at][:, 1].max()) for at in layers])
    return found


# ---------------------------------------------------------------- stream change


@pytest.fixture(scope="module")
def change(small):
    """Three rows, of which the second has no picture, and a group that none has."""
    neurons = Neurons.of([(0, 1), (1, 2), (1, 3)], small.widths)
    return stream_change(small, ask(small, "mixed"), neurons, groups=("image", "audio", "text"), draws=3)


def test_stream_change_draws_these_neurons_red_and_every_random_set_with_their_mean_grey(change):
    cells = plot.stream_change(change).axes
    assert len(cells) == 4, "a column for each group that a row has, and a line for each measure"
    for measure, line in zip(("relative", "turned"), (cells[:2], cells[2:]), strict=True):
        for axes, group in zip(line, (0, 2), strict=True):
            own, draws = getattr(change, measure)[group], getattr(change, f"random_{measure}")[:, group]
            lines = named(axes)
            torch.testing.assert_close(curve(lines["these neurons"]), own.nanmean(-1))
            torch.testing.assert_close(curve(lines["mean of 3 random sets of as many"]), draws.nanmean(-1).mean(0))
            thin = torch.stack([curve(one) for one in axes.lines if one.get_linewidth() < 1])
            torch.testing.assert_close(thin, draws.nanmean(-1))
            assert same_color(lines["these neurons"].get_color(), OURS)
            assert all(same_color(one.get_color(), RANDOM) for one in axes.lines if one is not lines["these neurons"])
            assert axes.get_ylim() == line[0].get_ylim() and list(axes.get_xticks()) == [0, 1, 2, 3]
            low, high = axes.get_ylim()
            assert low < 0 and max(max(curve(one)) for one in axes.lines) < high


def test_stream_change_says_what_it_measures_over_how_many_rows_and_where_a_layer_is(change):
    figure = plot.stream_change(change)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:2] == [
        "image positions\n(mean of 2 rows, 95 % band)",
        "text positions\n(mean of 3 rows, 95 % band)",
    ]
    assert [axes.get_ylabel().split("\n")[1] for axes in figure.axes[::2]] == ["||h' - h|| / ||h||", "1 - cos(h', h)"]
    assert "enters block l; the last is the output" in figure.get_supxlabel()
    (band,) = bands(figure.axes[1])
    interval = ttest_1samp(change.relative[2, 3].double(), 0).confidence_interval(0.95)
    assert band[3] == pytest.approx(tuple(interval), rel=1e-3)


def test_stream_change_of_one_row_without_draws_has_no_band_and_no_grey(small):
    neurons = Neurons.of([(0, 1)], small.widths)
    result = stream_change(small, ask(small, "one"), neurons, groups=("image",), draws=0)
    for axes in plot.stream_change(result).axes:
        assert not axes.collections and list(named(axes)) == ["these neurons"]
    assert plot.stream_change(result).axes[0].get_title() == "image positions\n(one row)"
    with pytest.raises(ValueError, match="no row has any of audio"):
        plot.stream_change(stream_change(small, ask(small, "one"), neurons, groups=("audio",), draws=0))


# ---------------------------------------------------------------- media geometry

LABELS = ["street", "$can", "page", "page"] * 2


@pytest.fixture(scope="module")
def eight(small):
    return small.to_inputs(["what is it"] * 8, images=[picture(index) for index in range(8)])


def test_media_geometry_draws_every_example_in_its_labels_colour_and_marker(small, eight):
    result = media_geometry(small, eight, LABELS)
    figure = plot.media_geometry(result)
    axes = figure.axes[0]
    clouds = {cloud.get_label(): cloud for cloud in axes.collections}
    assert list(clouds) == ["street (2)", r"\$can (2)", "page (4)"]
    for index, cloud in enumerate(clouds.values()):
        torch.testing.assert_close(
            torch.tensor(np.asarray(cloud.get_offsets())).float(), result.plane[result.label == index]
        )
    assert len({tuple(cloud.get_facecolor()[0]) for cloud in clouds.values()}) == 3
    assert len({cloud.get_paths()[0].vertices.tobytes() for cloud in clouds.values()}) == 3
    assert axes.get_title() == "output of vision block 1, n = 8"
    assert axes.get_xlabel() == f"component 1 ({float(result.explained[0]):.0%} of the variance)"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(clouds)


def test_media_geometry_draws_the_silhouette_beside_every_shuffling_of_labels(small, eight):
    result = media_geometry(small, eight, LABELS, draws=4)
    axes = plot.media_geometry(result).axes[1]
    mean = float(result.random_silhouette.mean())
    lines = named(axes)
    torch.testing.assert_close(curve(lines["one shuffling of labels each"]), result.random_silhouette)
    assert curve(lines[f"mean of 4: {mean:.2f}"]).tolist() == pytest.approx([mean, mean])
    own = lines[f"these labels: {float(result.silhouette):.2f}"]
    assert curve(own).tolist() == pytest.approx([float(result.silhouette)] * 2) and same_color(own.get_color(), OURS)
    low, high = axes.get_ylim()
    assert low < min(result.random_silhouette.min(), result.silhouette) and high > 1


def test_media_geometry_by_t_sne_has_no_unit_and_one_label_no_silhouette(small, eight):
    one = media_geometry(small, eight, ["page"] * 8, projection="tsne")
    axes, beside = plot.media_geometry(one).axes
    assert axes.get_xlabel() == "t-SNE 1 (no unit)"
    assert "these labels: not defined" in named(beside) and beside.get_ylim()[0] < 0
    without = plot.media_geometry(media_geometry(small, eight, LABELS, draws=0)).axes[1]
    assert len(named(without)) == 1


# ---------------------------------------------------------------- lens entropy


@pytest.fixture(scope="module")
def entropy(small):
    """Six examples of two labels; the examples 1 and 4 have no picture, and none has a sound."""
    inputs = [ask(small, "mixed"), ask(small, "mixed", first=5)]
    return lens_entropy(small, inputs, ["b", "a", "a", "b", "a", "b"], groups=("image", "audio", "text"))


def test_lens_entropy_draws_a_panel_for_each_group_with_a_curve_for_each_label(entropy):
    figure = plot.lens_entropy(entropy)
    assert [axes.get_title() for axes in figure.axes] == [
        "image positions (n = 4 examples, 95 % bands)",
        "text positions (n = 6 examples, 95 % bands)",
    ]
    for axes, group in zip(figure.axes, ("image", "text"), strict=True):
        lines = named(axes)
        for label in ("b", "a"):
            torch.testing.assert_close(curve(lines[label]), entropy.curve(label, group=group))
        assert not same_color(lines["a"].get_color(), lines["b"].get_color())
    assert same_color(*(named(axes)["a"].get_color() for axes in figure.axes))
    own = entropy.by_example[entropy.label == 0, 2, 1].double()
    assert bands(figure.axes[1])[0][1] == pytest.approx(tuple(ttest_1samp(own, 0).confidence_interval(0.95)), rel=1e-3)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["b", "a"]
    assert figure.axes[0].get_ylabel() == "mean entropy (nats)" and "the last is the output" in figure.get_supxlabel()


def test_lens_entropy_of_one_label_is_one_panel_with_a_curve_in_the_colour_of_each_group(entropy):
    one = replace(entropy, labels=("all",), label=entropy.label * 0, positions=entropy.positions.sum(0, keepdim=True))
    (axes,) = plot.lens_entropy(one).axes
    lines = named(axes)
    assert set(lines) == {"image", "text"} and axes.get_title() == "n = 6 examples, 95 % bands"
    for group, line in lines.items():
        torch.testing.assert_close(curve(line), entropy.curve(group=group))
        assert same_color(line.get_color(), GROUPS[group])


def test_lens_entropy_of_a_site_says_so_and_leaves_out_what_is_not_there(small):
    result = lens_entropy(small, ask(small, "mixed"), ["a", "b", "a"], groups=("image",), site="mlp_out")
    figure = plot.lens_entropy(result)
    assert figure.get_supxlabel() == "layer (its mlp_out)" and set(named(figure.axes[0])) == {"a"}
    with pytest.raises(ValueError, match="no example has any of audio"):
        plot.lens_entropy(lens_entropy(small, ask(small, "one"), groups=("audio",)))
