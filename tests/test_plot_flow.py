"""Figures of how information flows show what the results hold, beside the random control, with what the axes mean."""

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from matplotlib.colors import same_color, to_rgb
from PIL import Image
from scipy.stats import ttest_1samp
from support import ask, picture

from mmlens import Neurons, metrics, plot
from mmlens.analysis import (
    activation_patching,
    group_geometry,
    knock_out_effect,
    last_token_convergence,
    probing_score,
    telomere_score,
    turning_points,
)
from mmlens.plot.canvas import OURS, RANDOM, png
from mmlens.plot.curves import GROUPS


@pytest.fixture(scope="module")
def inputs(small):
    """Three rows, of which the second has no picture."""
    return ask(small, "mixed")


@pytest.fixture(scope="module")
def pictured(small):
    texts = ["what is in the picture ?", "which object is red and blue ?"]
    return small.to_inputs(texts, images=[picture(0), picture(1)])


@pytest.fixture(scope="module")
def neurons(small):
    return Neurons.of([(layer, unit) for layer in range(3) for unit in range(6)], small.widths)


def drawn(axes):
    """Return the curves of a panel by the start of their labels, and those without one (all but the first draw)."""
    named = {
        line.get_label().split()[0]: torch.as_tensor(np.asarray(line.get_ydata())).float()
        for line in axes.lines
        if not line.get_label().startswith("_")
    }
    lines = [line for line in axes.lines if len(line.get_xdata()) > 2 and line.get_linewidth() < 1]
    return named, torch.stack([torch.as_tensor(np.asarray(line.get_ydata())).float() for line in lines]) if lines else None


def panels(figure, groups):
    """Return the panels of a figure of convergence by the curve and the group that they are about."""
    titles = {
        "to its final state": ("cosine", None),
        "from its output (nats)": ("kl", None),
        **{f"of {name} positions": ("centroids", place) for place, name in enumerate(groups)},
        **{f"on {name} positions": ("mass", place) for place, name in enumerate(groups)},
    }
    return {titles[axes.get_title().split("\n")[-1]]: axes for axes in figure.axes}


def rows_with(inputs, group):
    """Return the rows that have other positions of a group than their last."""
    return torch.ones(len(inputs), dtype=torch.bool) if group is None else (inputs.mask(group) & ~inputs.last()).any(1)


def test_convergence_draws_the_clean_run_the_ablated_one_and_every_random_set_with_their_mean(small, inputs, neurons):
    groups = ("image", "text")
    result = last_token_convergence(small, inputs, groups=groups, neurons=neurons, draws=3)
    found = panels(plot.convergence(result), groups)
    assert len(found) == 6
    for (curve, group), axes in found.items():
        mean, thin = drawn(axes)
        whole = slice(None) if group is None else group
        rows = rows_with(inputs, groups[group] if curve == "centroids" else None)
        of = lambda run: getattr(run, curve)[whole][:, rows].mean(-1)  # noqa: B023, E731
        torch.testing.assert_close(mean["clean"], of(result.clean))
        torch.testing.assert_close(mean["neurons"], of(result.ablated))
        torch.testing.assert_close(thin, torch.stack([of(run) for run in result.random]))
        torch.testing.assert_close(mean["mean"], thin.mean(0))
        colors = {line.get_label(): line.get_color() for line in axes.lines}
        assert colors["mean of 3 random sets of as many"] == RANDOM and colors["neurons ablated"] == OURS


def test_its_bands_are_the_95_percent_intervals_of_the_mean_over_rows_and_one_row_has_none(small, pictured):
    result = last_token_convergence(small, pictured, groups=("image",))
    for (curve, group), axes in panels(plot.convergence(result), ("image",)).items():
        values = getattr(result.clean, curve)[slice(None) if group is None else group].double().numpy()
        (band,) = axes.collections
        corners = band.get_paths()[0].vertices
        for layer, own in enumerate(values):
            heights = corners[corners[:, 0] == layer][:, 1]
            if own.std() > 1e-6:  # the last layer is what it is compared to
                interval = ttest_1samp(own, 0).confidence_interval(0.95)
                assert (heights.min(), heights.max()) == pytest.approx(tuple(interval), rel=1e-3, abs=1e-4)
    one = last_token_convergence(small, ask(small, "one"), groups=("image",))
    figure = plot.convergence(one)
    assert not any(axes.collections for axes in figure.axes)
    assert "band" not in figure.get_supxlabel() and "2 rows, 95 % band" in plot.convergence(result).get_supxlabel()


def test_differences_are_drawn_row_by_row_around_zero_and_need_neurons(small, inputs, neurons):
    result = last_token_convergence(small, inputs, groups=("image", "text"), neurons=neurons, draws=2)
    for (curve, group), axes in panels(plot.convergence(result, show="difference"), ("image", "text")).items():
        mean, thin = drawn(axes)
        whole = slice(None) if group is None else group
        torch.testing.assert_close(mean["neurons"], result.difference(curve)[whole].nanmean(-1))
        torch.testing.assert_close(thin, result.random_difference(curve)[:, whole].nanmean(-1))
        assert "clean" not in mean and axes.lines[0].get_ydata() == [0, 0]
        assert axes.get_title().startswith("change of the\n")
    with pytest.raises(ValueError, match="give last_token_convergence the `neurons`"):
        plot.convergence(last_token_convergence(small, inputs), show="difference")


def test_axes_of_convergence_count_the_stream_and_the_blocks_and_leave_out_groups_that_are_not_there(small, inputs):
    result = last_token_convergence(small, inputs, groups=("image", "audio", "text"))
    figure = plot.convergence(result)
    found = panels(figure, result.groups)
    assert {group for _, group in found} == {None, 0, 2}
    for (curve, _), axes in found.items():
        assert list(axes.get_xticks()) == list(range(3 if curve == "mass" else 4))
    assert "(the last is the output)" in figure.get_supxlabel()
    for curve in ("centroids", "mass"):
        assert found[curve, 0].get_ylim() == found[curve, 2].get_ylim()
        for group in (0, 2):
            low, high = found[curve, group].get_ylim()
            assert all(low <= value <= high for line in found[curve, group].lines for value in line.get_ydata())


def test_the_plane_has_each_position_in_its_groups_colour_above_the_curves_of_centroids_and_silhouette(small, pictured):
    groups = ("image", "text", "special")
    result = group_geometry(small, pictured, groups=groups)
    figure = plot.group_geometry(result, layers=[1, 3])
    *planes, left, right = figure.axes
    for axes, layer, title in zip(planes, (1, 3), ("layer 1", "layer 3 (the output)"), strict=True):
        assert axes.get_title() == title
        assert axes.get_xlabel() == f"component 1 ({float(result.explained[layer, 0]):.0%})"
        clouds = {cloud.get_label().split()[0]: cloud for cloud in axes.collections}
        for index, name in enumerate(groups):
            points = torch.tensor(np.asarray(clouds[name].get_offsets())).float()
            torch.testing.assert_close(points, result.plane[layer, result.group == index])
            assert same_color(clouds[name].get_facecolor()[0][:3], GROUPS[name])
            assert clouds[name].get_label() == f"{name} ({len(points)} positions)"
    pairs = {line.get_label(): torch.tensor(line.get_ydata()) for line in left.lines}
    assert set(pairs) == {"image and text", "image and special", "text and special"}
    for name, curve in pairs.items():
        one, two = (groups.index(group) for group in name.split(" and "))
        torch.testing.assert_close(curve, result.cosine[:, :, one, two].mean(-1))
    torch.testing.assert_close(torch.tensor(right.lines[0].get_ydata()), result.silhouette.mean(-1))
    assert "the last is the output" in right.get_xlabel() and "2 rows" in right.get_xlabel()
    assert left.get_ylabel() == "cosine of the centroids" and right.get_ylabel().startswith("silhouette\n(0: they overlap")
    with pytest.raises(IndexError, match="layers 0 to 3, got 4"):
        plot.group_geometry(result, layers=[0, 4])


def test_groups_of_one_modality_have_colours_of_their_own_and_t_sne_claims_no_share_of_variance(small):
    inputs = ask(small, "two")
    result = group_geometry(small, inputs, groups=("image:0", "image:1", "text"), projection="tsne")
    planes = plot.group_geometry(result).axes[:4]
    assert len({tuple(cloud.get_facecolor()[0]) for cloud in planes[0].collections}) == 3
    assert [axes.get_xlabel() for axes in planes] == ["t-SNE 1 (no unit)"] * 4
    record = result.provenance
    again = replace(result, provenance=replace(record, parameters={**record.parameters, "projection": "umap"}))
    for axes in plot.group_geometry(again).axes[:4]:
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("UMAP 1 (no unit)", "UMAP 2 (no unit)")


@pytest.mark.parametrize(("source", "target"), [("image", "text"), ("text", "image")])
def test_probing_is_drawn_beside_every_draw_of_shuffled_labels(small, pictured, source, target):
    result = probing_score(small, pictured, source=source, target=target, draws=4)
    share, tail = plot.probing_score(result).axes
    for axes, own, random in ((share, result.share, result.random_share), (tail, result.tail, result.random_tail)):
        mean, thin = drawn(axes)
        torch.testing.assert_close(mean["these"], own.mean(-1))
        torch.testing.assert_close(thin, random.mean(-1))
        torch.testing.assert_close(mean["mean"], random.mean((0, 2)))
        assert {line.get_label() for line in axes.lines} >= {f"these labels: from {source} to {target}"}
    assert share.get_ylabel() == f"share of {source} positions\nnearer to {target}"
    assert "interquartile ranges" in tail.get_ylabel() and share.get_ylim() == (-0.03, 1.03)
    assert share.get_xlabel() == "layer\nmean of 2 rows, 95 % band"
    assert "the stream that enters block l; the last is the output" in share.get_figure().get_supxlabel()


def test_telomeres_are_drawn_for_each_k_beside_every_draw_of_positions_as_ends(small, pictured):
    result = telomere_score(small, pictured, ks=(1, 3), draws=4)
    *within, outer = plot.telomere_score(result).axes
    held = [(within[i], result.within[i], result.random_within[:, i]) for i in range(2)]
    for axes, own, random in [*held, (outer, result.outer, result.random_outer)]:
        mean, thin = drawn(axes)
        torch.testing.assert_close(mean["ends:"], own.mean(-1))
        torch.testing.assert_close(thin, random.mean(-1))
        torch.testing.assert_close(mean["mean"], random.mean((0, 2)))
    assert [axes.get_ylabel().split("\n")[1] for axes in within] == [
        "nearest position is text",
        "nearest 3 positions are text",
    ]
    assert "90 % of text" in outer.get_ylabel() and outer.get_xlabel().startswith("layer")
    assert all(axes.get_ylim() == (-0.03, 1.03) for axes in (*within, outer))


def test_scores_without_draws_have_no_grey_curve(small, pictured):
    figure = plot.probing_score(probing_score(small, pictured, source="image", target="text", draws=0))
    assert all(line.get_color() == OURS for axes in figure.axes for line in axes.lines)


@pytest.fixture(scope="module")
def bent():
    """Two curves of three straight parts each, which both turn at the layers 2 and 6."""
    layers = torch.arange(12.0)
    text = 5 - 2 * (layers - 2).clamp(min=0) + 1.5 * (layers - 6).clamp(min=0)
    return {"image": 3 - text / 2, "text": text}


def test_stages_draw_each_curve_and_its_two_turning_points_in_its_colour_and_say_whose_rule_it_is(bent):
    figure = plot.stages(bent, quantity="neurons of the domain")
    (axes,), (legend,) = figure.axes, figure.legends
    for name, curve in bent.items():
        own = [line for line in axes.lines if line.get_color() == GROUPS[name]]
        torch.testing.assert_close(torch.tensor(own[0].get_ydata()), curve)
        assert [line.get_xdata()[0] for line in own[1:]] == list(turning_points(curve)) == [2, 6]
        assert own[0].get_label() == f"{name}: turns at 2 and 6"
    assert "our rule, not the paper's" in legend.get_title().get_text()
    assert axes.get_ylabel() == "neurons of the domain"
    assert axes.get_xlabel() == "layer (the stream that enters it; the last is the output)"
    with pytest.raises(ValueError, match="five layers or more"):
        plot.stages({"image": torch.arange(4.0)})


def test_turning_points_at_the_same_layer_are_both_seen(bent):
    figure = plot.stages(bent)
    pixels = np.asarray(Image.open(BytesIO(png(figure, dpi=int(figure.dpi)))).convert("RGB")) / 255
    axes = figure.axes[0]
    across, _ = axes.transData.transform((6, 0))
    column = pixels[:, round(across) - 1 : round(across) + 2].reshape(-1, 3)
    for name in bent:
        seen = (np.abs(column - np.array(to_rgb(GROUPS[name]))).max(-1) < 0.1).sum()
        assert seen > 20, f"the line of {name} is hidden"


def test_the_sources_of_a_knock_out_that_were_drawn_at_random_are_grey_and_others_are_not(small, pictured):
    image = pictured.mask("image")
    sources = {"image": image, "some of it": image & (torch.arange(image.shape[1]) % 3 == 0)}
    target = torch.tensor([small.to_token("car")] * 2)
    result = knock_out_effect(small, pictured, lambda logits: metrics.log_prob(logits, target), sources=sources)
    (axes,) = plot.knock_out_effect(result, controls=["some of it"]).axes
    grey = {line.get_label(): same_color(line.get_color(), RANDOM) for line in axes.lines if line.get_label() in sources}
    assert grey == {"image": False, "some of it": True}
    with pytest.raises(ValueError, match="among the sources image, some of it, got 'text'"):
        plot.knock_out_effect(result, controls=["text"])


def counterfactual(model, inputs):
    """Return what patching takes: another picture behind the same words, and the difference of two logits."""
    corrupted = model.with_images(inputs, [picture(4), picture(5)])
    return dict(clean=inputs, corrupted=corrupted, metric=lambda logits: logits[:, -1, 7] - logits[:, -1, 8])


def test_patching_writes_means_with_their_intervals_and_draws_heads_in_a_panel_for_each_site(small, pictured):
    sites = {"image": pictured.mask("image"), "last": pictured.last()}
    result = activation_patching(small, **counterfactual(small, pictured), activation="z", sites=sites, heads=[0, 2, 3])
    figure = plot.patching(result)
    low, high = result.interval()
    assert figure.axes[0].get_ylabel() == "layer"
    assert figure.axes[-1].get_ylabel() == "share of the clean run restored\n(mean of 2 rows)"
    for site, (axes, name) in enumerate(zip(figure.axes[:2], sites, strict=True)):
        assert axes.get_title() == name and axes.get_xlabel() == "heads that get the clean z"
        assert [label.get_text() for label in axes.get_xticklabels()] == ["H0", "H2", "H3"]
        assert axes.images[0].get_clim() == (-1, 1)
        shown = torch.as_tensor(axes.images[0].get_array().filled())
        torch.testing.assert_close(shown, result.mean[:, site])
        for text in axes.texts:
            column, row = text.get_position()
            mean, ends = text.get_text().split("\n")
            assert float(mean) == pytest.approx(float(result.mean[row, site, column]), abs=0.006)
            truth = [float(low[row, site, column]), float(high[row, site, column])]
            assert [float(end) for end in ends.split(" to ")] == pytest.approx(truth, abs=0.006)
        assert len(axes.texts) == 3 * small.cfg.n_layers


def test_patching_position_by_position_is_drawn_on_the_picture_at_its_place(small, pictured):
    runs = counterfactual(small, pictured)
    result = activation_patching(small, **runs)
    axes = plot.patching(result, tokens=small.to_str_tokens(pictured.tokens[0])).axes[0]
    assert not axes.texts and axes.get_xticklabels()[0].get_text().startswith("0 ")
    figure = plot.patching_on_picture(result, pictured, row=1, layers=[0, 2])
    here, region = pictured.mask("image")[1].nonzero()[:, 0], pictured.grids[1][0].region
    for axes, layer in zip(figure.axes[:2], (0, 2), strict=True):
        assert axes.get_title() == f"before layer {layer}"
        shades = torch.as_tensor(axes.images[-1].get_array().filled())
        torch.testing.assert_close(shades.flatten(), result.effect[layer, here, 1])
        assert axes.images[-1].get_clim() == (-1, 1) and axes.images[-1].get_cmap().name == "RdBu"
        left, top, right, bottom = region
        assert axes.images[-1].get_extent() == [left, right, bottom, top]
    bar = figure.axes[-1]
    assert bar.get_ylabel() == "share of the clean run restored" and list(bar.get_yticks()) == [-1, 0, 1]
    some = activation_patching(small, **runs, positions=[3])
    with pytest.raises(ValueError, match="patch all positions of the picture one by one"):
        plot.patching_on_picture(some, pictured)
