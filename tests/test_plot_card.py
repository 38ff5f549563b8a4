"""A neuron's card says what its results hold, and CircuitsVis' views hold every token as text and its script once."""

import json
import re
from html import unescape

import numpy as np
import pytest
import torch
from drawn_circuit import HOSTILE
from support import picture, sound

import mmlens
from mmlens import Neurons, TokenStats, plot, sweep
from mmlens.analysis import ablation_curve, decode, receptive_field, time_field
from mmlens.plot.circuits_vis import JOINER
from mmlens.plot.switched_off import number
from mmlens.testing import tiny

WORDS = ["<s>", "<image>", " &amp;", "\n", "</script>\u2028", "<!-- a"]


def held(page):
    """Return what the script of a page is given."""
    return json.loads(page.html.split('id="data">')[1].split("</script>")[0])


def text(page):
    """Return the words of a page's body."""
    body = page.html.split("<body>")[1].split("<script")[0]
    return unescape(re.sub(r"<[^>]*>", " ", body))


@pytest.fixture(scope="module")
def neurons(small):
    return Neurons.of([(0, 1), (2, 4), (1, 3)], small.widths)


@pytest.fixture(scope="module")
def inputs(small):
    return small.to_inputs([f"what {HOSTILE} ?", "a picture"], images=[picture(0, 50, 40), picture(1, 40, 60)])


@pytest.fixture(scope="module")
def statistics(small):
    examples = [mmlens.Example("a car", images=picture(n), label="ab"[n % 2]) for n in range(3)]
    groups = ("image", "text", "audio")
    return sweep(small, examples, {"all": TokenStats(small.widths, labels=("a", "b"), groups=groups)}, progress=False)["all"]


def curve(small, inputs, neurons, ks, **options):
    return ablation_curve(small, inputs, torch.tensor([5, 6]), neurons, ks=ks, draws=3, **options)


def test_a_card_holds_every_neurons_words_fields_and_means_and_its_ablation_beside_random_ones(
    small, inputs, neurons, statistics
):
    raised, lowered = decode(small, neurons, k=4), decode(small, neurons, k=4, largest=False)
    more = Neurons.of([(0, 0), *list(neurons)[::-1]], small.widths)
    fields = [receptive_field(small, inputs, more, row=row) for row in (1, 0)]
    curves = [curve(small, inputs, neurons[[n]], [0, 1]) for n in range(3)]
    page = plot.neuron_card(
        raised, lowered=lowered, fields=fields, inputs=[inputs], statistics=statistics, ablation=curves, title=HOSTILE
    )
    said, data = text(page), held(page)
    assert data["names"] == neurons.labels() and [one["name"] for one in data["fields"]] == [
        "image:0 of row 1",
        "image:0 of row 0",
    ]
    for row, one, field in zip((1, 0), data["fields"], fields, strict=True):
        assert one["positions"] == inputs.mask("image")[row].nonzero()[:, 0].tolist()
        torch.testing.assert_close(torch.tensor(one["values"]), field.activations.flip(0)[:3], rtol=1e-3, atol=1e-6)
    most = torch.stack([field.activations.flip(0)[:3].abs().amax(-1) for field in fields]).amax(0)
    torch.testing.assert_close(torch.tensor(data["scale"]), most)
    for decoding in (raised, lowered):
        assert all(number(effect) in said for effect in decoding.effects.flatten().tolist())
    means = statistics.table("mean")
    for _, layer, unit in neurons:
        assert all(number(value) in said for value in means[:, :2, layer, unit].flatten().tolist())
    assert said.count("none") == 2 * len(neurons), "no sounds"
    for own in curves:
        draws = own.random_change().mean(-1)[:, 1].tolist()
        assert number(float(own.change()[1].mean())) in said
        assert f"({number(min(draws))} to {number(max(draws))}, 3 draws)" in said
    assert said.count("logits per unit of activation") == 2 * 3 and "one scale for all fields of a neuron" in said
    assert said.count("relative change of the targets' probability") == 3
    assert said.count("Without it") == 3 and "<img src=x" not in page.html
    assert "default-src 'none'" in page.html and not re.search(r"(src|href)=\"(?!data:|#)", page.html)


def test_a_card_shows_only_what_it_is_given(small, neurons):
    bare = plot.neuron_card(neurons[[1]])
    assert text(bare).split() == ["A", "neuron", "L2.u4", "language,", "layer", "2,", "unit", "4"]
    words = text(plot.neuron_card(decode(small, neurons[[1]], sign=torch.tensor([-1.0]))))
    assert "Words it raises" in words and "as its sign acts" in words and "Words it lowers" not in words
    assert 'role="tab"' not in bare.html and plot.neuron_card(neurons).html.count('role="tab"') == 3


def test_a_sounds_field_is_shown_on_its_spectrogram(tmp_path):
    model = mmlens.HookedMLLM.from_pretrained(tiny("qwen2-audio", tmp_path), device="cpu")
    inputs = model.to_inputs("what is heard ?", audio=sound(0))
    neurons = Neurons.of([(0, 1)], model.widths)
    field = time_field(model, inputs, neurons)
    page = plot.neuron_card(neurons, fields=[field], inputs=inputs)
    (one,) = held(page)["fields"]
    assert one["name"] == "audio:0 of row 0" and "spectrogram" in page.html and " s, position " in one["about"][0]
    torch.testing.assert_close(torch.tensor(one["values"]), field.activations, rtol=1e-3, atol=1e-6)


def test_a_common_curve_is_that_of_all_neurons_and_an_evaluation_shows_a_neuron_its_own_rows(small, inputs, neurons):
    said = text(plot.neuron_card(neurons, ablation=curve(small, inputs, neurons, [0, 1, 3])))
    assert said.count("Without these 3 neurons") == 3 and "first 1" in said and "all of them" in said
    said = text(plot.neuron_card(neurons[[1]], ablation=curve(small, inputs, neurons, [1, 3])))
    assert "Without 3 neurons, L0.u1 the first" in said and "probability" in said and "change" not in said
    examples = [mmlens.Example("a car", images=picture(n), answers=("tree",), label="ab"[n % 2]) for n in range(4)]
    sets = {"L2.u4": neurons[[1]], HOSTILE: neurons}
    found = mmlens.evaluate(small, examples, "log_prob", sets, draws=2, progress=False)
    own, both = (text(plot.neuron_card(neurons[[n]], ablation=found)) for n in (1, 0))
    row = found.table().loc[("L2.u4", "a")]
    cell = f"{number(row.difference)} [{number(row.difference_low)}, {number(row.difference_high)}]"
    assert cell in own and "img" not in own and cell in both and "<img" in both


def test_results_of_other_neurons_and_other_inputs_are_refused(small, inputs, neurons):
    field, first = receptive_field(small, inputs, neurons), neurons[[0]]
    with pytest.raises(ValueError, match="inputs that it was measured on"):
        plot.neuron_card(neurons, fields=[field], inputs=small.to_inputs("a", images=picture(2)))
    with pytest.raises(ValueError, match="of all neurons of the card"):
        plot.neuron_card(Neurons.of([(0, 7)], small.widths), fields=[field], inputs=inputs)
    with pytest.raises(ValueError, match="raised and lowered"):
        plot.neuron_card(decode(small, neurons), lowered=decode(small, first, largest=False))
    with pytest.raises(ValueError, match="one neuron each"):
        plot.neuron_card(neurons, ablation=[curve(small, inputs, first, [0, 1])])
    with pytest.raises(ValueError, match="got none"):
        plot.neuron_card(neurons[[]])


# ---------------------------------------------------------------- CircuitsVis


def test_views_of_one_page_share_one_script_and_hold_every_token_as_text():
    values, pattern = torch.linspace(-2, 1, 6).repeat(2, 1), torch.rand(3, 2, 6, 6)
    one = plot.tokens(WORDS, values, names=["a", HOSTILE], title=HOSTILE)
    page = one + plot.attention_patterns(WORDS, pattern) + plot.top_k_tokens([WORDS], [torch.rand(1, 6, 2)], k=2)
    assert page.html.count("var CircuitsVis=") == 1 and len(page.views) == 3 and page.height > one.height
    assert page.html.count("</script>") == 2, "the data's element and the script's"
    assert "unpkg" not in page.html and "sourceMappingURL" not in page.html and "<!-" not in page.html[100:]
    views = held(page)["views"]
    for view in views:
        tokens = view["props"]["tokens"]
        tokens = tokens[0] if isinstance(tokens[0], list) else tokens
        assert [word.replace(JOINER, "") for word in tokens] == [
            *WORDS[:3],
            "\\n",
            "</script>\\u2028",
            "<!-- a",
        ]
        assert not any(re.search(rf"[<&](?!{JOINER})", word) for word in tokens)
    assert [choice["values"] for choice in views[0]["choices"]] == [[-2, -1.4, -0.8, -0.2, 0.4, 1]] * 2
    assert {(choice["minValue"], choice["maxValue"]) for choice in views[0]["choices"]} == {(-2, 2)}
    assert views[0]["notes"] == ["Blue is above 0, full at +2; red below, full at −2."] * 2
    said = text(page)
    assert views[0]["notes"][0] in said and "Each row of a pattern is a query, each column a key" in said
    given = torch.tensor([choice["attention"] for choice in views[1]["choices"]])
    torch.testing.assert_close(given, pattern, rtol=1e-3, atol=1e-6)


def test_top_tokens_are_those_at_which_a_unit_is_highest_and_lowest():
    values = torch.tensor([[[1.0], [4.0], [-8.0], [2.0], [0.0], [3.0]]])
    page = plot.top_k_tokens([WORDS], [values], k=2)
    props = held(page)["views"][0]["props"]
    assert "Values are shares of 8, the largest" in text(page)
    assert props["topkIdxs"] == [[[[1], [5]]]] and props["bottomkIdxs"] == [[[[4], [2]]]]
    assert props["topkVals"] == [[[[0.5], [0.375]]]] and props["bottomkVals"] == [[[[0], [-1]]]]


def test_values_of_other_positions_and_wrong_names_are_refused():
    for call in (
        lambda: plot.tokens(WORDS, torch.zeros(5)),
        lambda: plot.tokens(WORDS, torch.zeros(2, 6), names=["a"]),
        lambda: plot.attention_patterns(WORDS, torch.zeros(2, 6, 5)),
        lambda: plot.attention_patterns(WORDS, torch.zeros(2, 6, 6), heads=["a"]),
        lambda: plot.attention_patterns(["a"] * 1500, torch.zeros(2, 1500, 1500)),
        lambda: plot.top_k_tokens([WORDS], [torch.zeros(1, 5, 2)]),
        lambda: plot.top_k_tokens([WORDS], []),
    ):
        with pytest.raises(ValueError, match="got"):
            call()


def test_what_is_not_finite_is_shown_as_0():
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, 0, 0, 0])
    (choice,) = held(plot.tokens(WORDS, values))["views"][0]["choices"]
    assert choice == {"values": [0] * 6, "minValue": -1, "maxValue": 1}


def test_fields_of_several_inputs_say_of_which(small, inputs, neurons):
    other = small.with_images(inputs, [np.full((30, 30, 3), shade, np.uint8) for shade in (0, 200)])
    fields = [receptive_field(small, one, neurons) for one in (other, inputs)]
    card = plot.neuron_card(neurons, fields=fields, inputs=[inputs, other])
    names = [one["name"] for one in held(card)["fields"]]
    assert names == ["image:0 of row 0, inputs 1", "image:0 of row 0, inputs 0"]


def test_a_change_of_next_to_nothing_is_drawn_small(small, inputs, neurons):
    page = plot.neuron_card(neurons[[0]], ablation=curve(small, inputs, neurons[[0]], [0, 1]))
    zero = float(re.search(r'class="zero" d="M([\d.]+)', page.html)[1])
    own = float(re.search(r'class="own" cx="([\d.]+)"', page.html)[1])
    change = float(curve(small, inputs, neurons[[0]], [0, 1]).change()[1].mean())
    assert abs(change) < 0.05 and abs(own - zero) < 330 * abs(change) / 0.1 + 0.2, "a tenth is the whole axis, or less"
