"""Entropies by label and group are the lens's own means, and at the end those of what the plain model says."""

from dataclasses import replace

import pytest
import raw
import torch
from support import ask

from mmlens.analysis import LensEntropy, lens_entropy, logit_lens, turning_points


@pytest.mark.dear
def test_the_last_row_is_the_entropy_of_what_the_plain_model_says(model, plain, batches):
    media = model.family.takes[0]
    found = lens_entropy(model, (batches[kind] for kind in ("one", "text")), groups=(media, "text"))
    for example, kind in enumerate(("one", "text")):
        inputs = batches[kind]
        with torch.no_grad():
            entropy = torch.distributions.Categorical(logits=raw.logits(plain, inputs)[0].float()).entropy()
        for group, name in enumerate(found.groups):
            mask = inputs.mask(name)[0]
            if mask.any():
                raw.same(found.by_example[example, group, -1], entropy[mask].mean())
            else:
                assert found.by_example[example, group].isnan().all()
    assert found.by_example.shape == (2, 2, model.cfg.n_layers + 1) and found.labels == ("all",)
    raw.same(found.curve(group=media), found.by_example[0, 0])


@pytest.fixture(scope="module")
def found(llava):
    """Two batches of six examples of two labels; the examples 1 and 4 have no picture."""
    inputs = [ask(llava, "mixed"), ask(llava, "mixed", first=5)]
    return inputs, lens_entropy(llava, inputs, ["b", "a", "a", "b", "a", "b"])


def test_each_example_is_the_lenss_own_mean_over_its_positions_and_padding_is_in_none(llava, found):
    inputs, result = found
    for batch, examples in zip(inputs, (range(3), range(3, 6)), strict=True):
        lens = logit_lens(llava, batch)
        for row, example in enumerate(examples):
            only = torch.arange(3)[:, None] == row
            for group, name in enumerate(("image", "text")):
                expected = lens.mean_entropy(batch.mask(name) & only)
                torch.testing.assert_close(result.by_example[example, group], expected, equal_nan=True)


def test_curves_are_means_over_the_examples_of_a_label_that_have_the_group_and_each_counts_the_same(found):
    inputs, result = found
    assert result.labels == ("b", "a") and result.label.tolist() == [0, 1, 1, 0, 1, 0]
    one, two, three = result.by_example[[0, 3, 5], 0]
    torch.testing.assert_close(result.curve("b", group="image"), (one + two + three) / 3)
    torch.testing.assert_close(result.curve("a", group="image"), result.by_example[2, 0])  # 1 and 4 have no picture
    torch.testing.assert_close(result.curve(group="text"), result.by_example[:, 1].mean(0))
    means = result.mean()
    for label, name in enumerate(result.labels):
        for group, kind in enumerate(result.groups):
            assert torch.equal(means[label, group], result.curve(name, group=kind))
    sizes = torch.cat([torch.stack([batch.mask(kind).sum(1) for kind in ("image", "text")], 1) for batch in inputs])
    assert result.positions.tolist() == [sizes[[0, 3, 5]].sum(0).tolist(), sizes[[1, 2, 4]].sum(0).tolist()]


def test_another_site_is_read_there(llava):
    inputs = ask(llava, "padded")
    found = lens_entropy(llava, inputs, groups=("image:0",), site="mlp_out")
    entropy = logit_lens(llava, inputs, site="mlp_out").entropy
    for row in range(2):
        torch.testing.assert_close(found.by_example[row, 0], entropy[:, row, inputs.mask("image")[row]].mean(1))


def test_turning_points_are_those_of_the_curve_and_need_one(found):
    _, result = found
    layers = torch.arange(12.0)
    bent = 5 - 2 * (layers - 2).clamp(min=0) + 1.5 * (layers - 6).clamp(min=0)
    late = 3 - (layers - 5).clamp(min=0) + 2 * (layers - 9).clamp(min=0)
    curves = torch.stack([torch.stack([bent, bent]) if label == 0 else torch.stack([late, late]) for label in result.label])
    curves[result.label == 1, 0] = torch.nan
    deep = replace(result, by_example=curves)
    assert deep.turning_points("text", "b") == (2, 6) and deep.turning_points("text", "a") == (5, 9)
    assert deep.turning_points("text") == turning_points(curves[:, 1].mean(0))
    with pytest.raises(ValueError, match="no example of a has image"):
        deep.turning_points("image", "a")
    with pytest.raises(ValueError, match="five layers or more, got 4"):
        result.turning_points("text")


def test_labels_and_groups_that_are_not_there_are_refused_and_a_result_loads_as_it_was_saved(llava, found, tmp_path):
    inputs, result = found
    with pytest.raises(KeyError, match="have the labels b, a, got 'c'"):
        result.curve("c", group="text")
    with pytest.raises(KeyError, match="have the groups image, text, got 'audio'"):
        result.curve(group="audio")
    with pytest.raises(ValueError, match="got 7 labels for 6 rows"):
        lens_entropy(llava, inputs, ["a"] * 7)
    loaded = LensEntropy.load(result.save(tmp_path / "entropy"), model=llava)
    assert torch.equal(loaded.mean(), result.mean()) and torch.equal(loaded.positions, result.positions)
