"""Figures show what the results hold: each test reads its numbers back from the figure."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from support import picture

import mmlens
from mmlens import metrics, plot, top_k
from mmlens.analysis import (
    ablation_curve,
    activation_patching,
    attention_rows,
    attention_sinks,
    decode,
    direct_logit_attribution,
    grad_x_activation,
    knock_out_effect,
    logit_lens,
    nearest_tokens,
    receptive_field,
)
from mmlens.plot.canvas import GREY, Canvas, plain
from mmlens.plot.canvas import picture as draw
from mmlens.plot.stage_script import STYLE


def texts(axes):
    return [text.get_text() for text in axes.texts]


@pytest.fixture(scope="module")
def inputs(small):
    return small.to_inputs("what is in the picture ?", images=picture(0))


@pytest.fixture(scope="module")
def token(small):
    return torch.tensor([small.to_token("car")])


@pytest.fixture(scope="module")
def neurons(small, inputs, token):
    return top_k(grad_x_activation(small, inputs, token).scores[0], 8, widths=small.widths)


def test_every_position_is_numbered_at_the_middle_of_its_box(inputs):
    figure = plot.positions(inputs)
    assert isinstance(figure, Figure)
    (axes,), grid = figure.axes, inputs.grids[0][0]
    assert texts(axes) == [str(index) for index in range(len(grid))]
    for index, text in enumerate(axes.texts):
        left, top, right, bottom = grid.box(index)
        assert text.get_position() == pytest.approx(((left + right) / 2, (top + bottom) / 2))
    assert axes.get_title() == f"image 0: 50 x 40 pixels, {grid.rows} x {grid.columns} positions"
    first, last = inputs.mask("image")[0].nonzero()[[0, -1], 0].tolist()
    assert axes.get_xlabel() == f"image position 0 is position {first} of the stream, {len(grid) - 1} is {last}"


def test_positions_need_a_picture(small):
    with pytest.raises(ValueError, match="row 0 has none"):
        plot.positions(small.to_inputs("the red car"))


def test_the_lens_writes_each_positions_top_word_and_draws_entropy_by_modality(small, inputs):
    result = logit_lens(small, inputs, top_k=2)
    layers, image = [0, 3], inputs.mask("image")
    figure = plot.logit_lens(result, inputs, small, layers=layers)
    for axes, layer in zip(figure.axes, layers, strict=False):
        words = small.to_str_tokens(result.tokens[layer, 0, image[0], 0])
        assert texts(axes) == [plain(word, 9) for word in words]
        heat = torch.tensor(axes.images[1].get_array().filled()).flatten()
        torch.testing.assert_close(heat.float(), result.entropy[layer, 0, image[0]])
        assert axes.images[1].get_clim() == (0, pytest.approx(float(result.entropy[layers][:, 0, image[0]].max())))
    assert [axes.get_title() for axes in figure.axes[:2]] == ["layer 0", "layer 3 (the model's output)"]
    assert figure.axes[2].get_ylabel() == "entropy (nats)" and figure.axes[-1].get_ylabel() == "mean entropy (nats)"
    assert figure.axes[-1].get_xlabel() == "layer (the stream that enters it; the last is the output)"
    curves = {line.get_label().split()[0]: line.get_ydata() for line in figure.axes[-1].lines}
    torch.testing.assert_close(torch.tensor(curves["image"]), result.mean_entropy(image))
    torch.testing.assert_close(torch.tensor(curves["text"]), result.mean_entropy(inputs.mask("text")))


def test_the_lens_shows_the_probability_of_a_target(small, inputs, token):
    result = logit_lens(small, inputs, targets=token.tolist())
    figure = plot.logit_lens(result, inputs, small, target=0)
    heat = torch.tensor(figure.axes[0].images[1].get_array().filled()).flatten()
    torch.testing.assert_close(heat.float(), result.target_log_probs[0, 0, inputs.mask("image")[0], 0].exp())
    assert any("P(car)" in axes.get_ylabel() for axes in figure.axes)
    every = result.target_log_probs[:, 0, inputs.mask("image")[0], 0].exp()
    assert figure.axes[0].images[1].get_clim() == (0, pytest.approx(float(every.max())))


def test_neurons_show_label_score_words_field_and_overlap(small, inputs, neurons):
    decoding, field = decode(small, neurons[:4], k=5), receptive_field(small, inputs, neurons)
    control = receptive_field(small, inputs, neurons.random_like(seed=0))
    mask = torch.zeros(40, 50, dtype=torch.bool)
    mask[10:20, 10:30] = True
    figure = plot.neurons(decoding, field, inputs.media[0][0], mask, control=control)
    for index in range(4):
        axes = figure.axes[index]
        assert axes.get_title(loc="left").startswith(neurons.labels()[index] + " ")
        assert f"{float(neurons.score[index]):.2g}" in axes.get_title(loc="left")
        assert f"IoU with the object {float(field.iou(mask)[index]):.2f}" in axes.get_xlabel()
        assert all(plain(word, 12) in axes.get_xlabel() for word in decoding.words[index][:4])
        heat = axes.images[1]
        torch.testing.assert_close(torch.tensor(heat.get_array().filled(torch.nan)), field.heat()[index], equal_nan=True)
        low, high = heat.get_clim()
        assert -low == high == pytest.approx(float(field.heat()[index].nan_to_num(0).abs().max()))
    dots = [
        collection.get_offsets()[:, 0] for collection in figure.axes[-1].collections if len(collection.get_offsets()) > 1
    ]
    torch.testing.assert_close(torch.tensor(dots[0].filled()).float(), control.iou(mask))
    torch.testing.assert_close(torch.tensor(dots[1].filled()).float(), field.iou(mask))
    assert figure.axes[-1].get_xlabel().startswith("overlap (IoU) of a neuron's top 5 %")
    ours, random = (label.get_text() for label in figure.axes[-1].get_yticklabels())
    assert ours == f"these neurons (8)\nmean IoU {float(field.iou(mask).mean()):.2f}" and random.startswith(
        "random neurons (8)"
    )


def test_neurons_of_two_sets_are_refused(small, inputs, neurons):
    with pytest.raises(ValueError, match="same neurons"):
        plot.neurons(decode(small, neurons[2:4]), receptive_field(small, inputs, neurons), inputs.media[0][0])


def test_the_ablation_curve_shows_ours_every_draw_and_their_mean(small, inputs, token, neurons):
    result = ablation_curve(small, inputs, token, neurons, ks=[0, 1, 2, 5], draws=3)
    (axes,) = plot.ablation_curve(result, target="car").axes
    mean, *draws, own = (torch.tensor(line.get_ydata()) for line in axes.lines)
    torch.testing.assert_close(own, result.log_prob.exp()[:, 0])
    torch.testing.assert_close(torch.stack(draws), result.random_log_prob.exp()[..., 0])
    torch.testing.assert_close(mean, result.random_log_prob.exp()[..., 0].mean(0))
    assert list(axes.lines[-1].get_xdata()) == [0, 1, 2, 5]
    assert axes.get_ylabel() == "P(car), from 0 to 1" and axes.get_xlabel() == "neurons switched off (number)"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "mean of the random draws",
        "one random draw each",
        "these neurons, best first",
    ]
    widths = [line.get_linewidth() for line in axes.lines]
    assert max(widths[1:-1]) < widths[0]


def test_patching_has_fixed_colours_and_writes_its_numbers(small, inputs, token):
    other = small.to_inputs("what is in the picture ?", images=picture(1))
    result = activation_patching(
        small,
        clean=inputs,
        corrupted=other,
        metric=lambda logits: metrics.log_prob(logits, token),
        sites={"image": inputs.mask("image"), "last": inputs.last()},
    )
    axes, bar = plot.patching(result, counts={"last": 1}).axes
    assert bar.get_ylabel() == "share of the clean run restored" and list(bar.get_yticks()) == [-1, -0.5, 0, 0.5, 1]
    assert axes.get_xlabel() == "positions that get the clean stream" and axes.get_ylabel() == "before which layer"
    assert axes.images[0].get_cmap().name == "RdBu"
    assert axes.images[0].get_clim() == (-1, 1)
    torch.testing.assert_close(torch.tensor(axes.images[0].get_array().filled()), result.effect[..., 0])
    assert [float(text) for text in texts(axes)] == pytest.approx(result.effect[..., 0].flatten().tolist(), abs=0.006)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["image", "last\n(1 position)"]


def test_direct_attribution_draws_the_largest_parts_in_their_order_and_the_sum_of_the_others(small, inputs, token):
    result = direct_logit_attribution(small, inputs, token, by="head")
    (axes,) = plot.direct_attribution(result, k=5, target="car").axes
    names, values = [label.get_text() for label in axes.get_yticklabels()], [bar.get_width() for bar in axes.patches]
    parts, labels = result.parts[:, 0], result.components.labels()
    assert [labels.index(name) for name in names[:5]] == sorted(parts.abs().topk(5).indices.tolist())
    assert values[:5] == pytest.approx([float(parts[labels.index(name)]) for name in names[:5]])
    assert names[5] == f"{len(labels) - 5} others"
    assert sum(values) == pytest.approx(float(result.logits), rel=1e-3)
    assert axes.get_xlabel() == "added to the logit of car"
    assert len(plot.direct_attribution(result, k=99).axes[0].patches) == len(labels)


def test_nearest_tokens_are_drawn_beside_both_controls_with_their_tests(small, inputs):
    result = nearest_tokens(small, inputs, controls=50)
    (axes,) = plot.nearest_tokens(result).axes
    for line, kind in zip(axes.lines, ("norm", "gaussian"), strict=False):
        drawn = torch.tensor(np.unique(line.get_xdata()[1:])).float()
        torch.testing.assert_close(drawn, result.controls[kind].unique())
        assert f"D = {result.ks_statistic[kind]:.2f}, p = {result.ks_p[kind]:.2g}" in line.get_label()
    own = torch.tensor(np.unique(axes.lines[2].get_xdata()[1:])).float()
    torch.testing.assert_close(own, result.cosines[:, 0].unique())
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("cosine with the nearest token", "share of vectors")
    assert axes.lines[2].get_label() == f"these vectors, n = {len(result.cosines)}"


@pytest.mark.parametrize("head", [None, 1])
def test_attention_is_drawn_on_the_picture_with_its_sinks_beside_how_much_each_modality_gets(small, inputs, head):
    rows, sinks = attention_rows(small, inputs, layers=[0, 2]), attention_sinks(small, inputs, layers=[0, 2])
    threshold = float(sinks.drawn[..., inputs.mask("image")[0]].mean(2).nan_to_num(-1).amax())  # so that there are some
    where = sinks.where(threshold=threshold, of_heads=0.25)
    assert where[:, inputs.mask("image")].any()
    figure = plot.attention_rows(rows, inputs, head=head, sinks=where)
    chosen = rows.pattern[:, 0, :, 0].mean(1) if head is None else rows.pattern[:, 0, head, 0]
    grid = inputs.grids[0][0]
    for index, axes in enumerate(figure.axes[:2]):
        heat = torch.tensor(axes.images[1].get_array().filled()).flatten()
        torch.testing.assert_close(heat, chosen[index, inputs.mask("image")[0]])
        top = float(chosen[index, inputs.mask("image")[0]].max())
        assert axes.images[1].get_clim() == (0, pytest.approx(top)) and axes.images[1].get_cmap().name == "Reds"
        assert axes.get_title().startswith(f"layer {(0, 2)[index]}: ") and axes.get_title().endswith(f"at most {top:.1%}")
        marked = [tuple(line.get_xydata()[0]) for line in axes.lines]
        on_picture = where[index, 0, inputs.mask("image")[0]].nonzero()[:, 0].tolist()
        middles = [((left + right) / 2, (top + bottom) / 2) for left, top, right, bottom in map(grid.box, on_picture)]
        assert np.array(marked) == pytest.approx(np.array(middles))
    curves = {line.get_label().split()[0]: torch.tensor(line.get_ydata()) for line in figure.axes[-1].lines}
    masses = {kind: rows.mass(kind)[:, 0, :, 0] for kind in ("image", "text", "special")} | {
        "sinks": rows.mass(where)[:, 0, :, 0]
    }
    assert set(curves) == set(masses)
    for kind, mass in masses.items():
        torch.testing.assert_close(curves[kind], mass.mean(1) if head is None else mass[:, head])
    assert list(figure.axes[-1].lines[0].get_xdata()) == [0, 2] and figure.axes[-1].get_xlabel() == "layer"
    whose = "mean of heads" if head is None else "head 1"
    assert figure.axes[-1].get_ylabel() == f"share of the attention, {whose}" and figure.axes[-1].get_ylim() == (0, 1)


def test_knock_out_shows_each_sources_change_over_its_windows(small, inputs, token):
    sources = {"image": inputs.mask("image"), "text": inputs.mask("text") & ~inputs.last()}
    result = knock_out_effect(small, inputs, lambda logits: metrics.log_prob(logits, token), sources=sources, window=2)
    (axes,) = plot.knock_out_effect(result, metric="log-probability").axes
    drawn = {line.get_label(): torch.tensor(line.get_ydata()) for line in axes.lines if line.get_label() in sources}
    for index, source in enumerate(sources):
        torch.testing.assert_close(drawn[source], result.change[:, index].mean(-1))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0-1", "1-2"]
    assert axes.get_ylabel() == "change of the log-probability"
    assert axes.get_xlabel() == "layers in which attention is blocked"
    assert axes.get_legend().get_title().get_text() == "hidden from the query"


def test_a_figure_shows_itself_in_a_notebook_and_opens_no_window(inputs):
    figure = plot.positions(inputs)
    assert isinstance(figure, Canvas)
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_under_paint_a_picture_is_paler_and_greyer_as_in_pages_and_elsewhere_as_it_is():
    own, axes = picture(0), Canvas().subplots()
    draw(axes, own)
    draw(axes, own, faded=0.35)
    plain_, under = (np.asarray(image.get_array()) for image in axes.images)
    np.testing.assert_allclose(plain_, np.asarray(own) / 255)
    grey = plain_ @ [0.2126, 0.7152, 0.0722]
    np.testing.assert_allclose(under, 0.35 + 0.65 * ((1 - GREY) * plain_ + GREY * grey[..., None]))
    assert f"grayscale({GREY})" in STYLE


def test_every_figure_is_asked_for_in_the_tests_of_figures():
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_plot*.py"))
    assert not [name for name in plot.__all__ if f"plot.{name}(" not in text]


@pytest.mark.parametrize(("word", "shown"), [("$x$", r"\$x\$"), (" car", "car"), ("\n", r"\n"), ("abcdefgh", "abcd…")])
def test_words_are_drawn_as_plain_text(word, shown):
    assert plain(word, 5) == shown or (word == "$x$" and plain(word) == shown)


def test_the_strongest_examples_are_shown_with_their_activations_strongest_first(small):
    examples = [mmlens.Example("a red car", images=picture(place)) for place in range(4)]
    top = {"top": mmlens.TopExamples(small.widths, k=6, groups=("image", "text"))}
    found = mmlens.sweep(small, examples, top, progress=False)["top"]
    neurons = mmlens.Neurons.of([(0, 3), (2, 7)], small.widths)
    figure = plot.strongest(found, examples, neurons, group="image")
    assert [axes.get_ylabel() for axes in figure.axes[::6]] == ["L0.u3", "L2.u7"]
    shown = [axes for axes in figure.axes[:6] if axes.get_visible()]
    value, place = (part["language"][0, 0, 0, 3, :4].tolist() for part in (found.value, found.place))
    assert [axes.get_title() for axes in shown] == [f"{one:.2f}" for one in value]
    assert [axes.get_xlabel() for axes in shown] == [f"example {one}" for one in place]
    told = "Highest activation (post) at image positions, strongest example first"
    assert figure.get_suptitle() == told
    pixels = np.asarray(shown[0].images[0].get_array())
    np.testing.assert_allclose(pixels, np.asarray(examples[place[0]].images) / 255)
    with pytest.raises(ValueError, match="groups image, text: say which"):
        plot.strongest(found, examples, neurons)
    with pytest.raises(ValueError, match="has none"):
        plot.strongest(found, [mmlens.Example("a")] * 4, neurons, group="text")


def test_an_evaluation_shows_each_change_its_interval_and_the_range_of_its_controls(small):
    examples = [
        mmlens.Example("a red car", images=picture(place), answers=("tree",), label="ab"[place % 2]) for place in range(8)
    ]
    chosen = {"first": mmlens.Neurons.of([(0, unit) for unit in range(20)], small.widths)}
    found = mmlens.evaluate(small, examples, "log_prob", chosen, draws=3, progress=False)
    table = found.table(resamples=99)
    figure = plot.evaluation(found, resamples=99)
    assert [axes.get_title() for axes in figure.axes] == ["a (n = 4)", "b (n = 4)"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["first"]
    told = "Change of mean log_prob (nats); 95 % interval; grey: range of random controls"
    assert figure.get_supxlabel() == told and figure.axes[0].get_ylabel() == "intervention"
    for axes, task in zip(figure.axes, "ab", strict=True):
        row, base = table.loc[("first", task)], table.loc[("baseline", task)]["mean"]
        band, interval, dot, _ = [list(line.get_xdata()) for line in axes.lines]
        assert band == [row["draw_low"] - base, row["draw_high"] - base]
        assert interval == [row["difference_low"], row["difference_high"]]
        assert dot == [row["difference"]]
