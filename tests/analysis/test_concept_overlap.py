"""A table of overlaps is what a loop over fields, one at a time, comes to."""

import numpy as np
import pytest
import torch
from support import picture

from mmlens import Neurons
from mmlens.analysis import receptive_field
from mmlens.analysis.concept_overlap import ConceptOverlap, Region, concept_overlap

SIGN = torch.tensor([1.0, -1.0, 1.0])


@pytest.fixture(scope="module")
def regions(small):
    model = small[0]
    left, corner = torch.zeros(40, 50, dtype=torch.bool), torch.zeros(40, 50, dtype=torch.bool)
    left[:, :25], corner[:10, :5] = True, True
    one = model.to_inputs("what", images=picture(1))
    two = model.to_inputs("<image> and <image> ?", images=[picture(2), picture(3)])
    some, others = [(2, 5), (0, 1), (2, 7)], [(1, 1), (1, 2)]  # layers out of order: partners go by layer
    return [
        Region("car", one, left, Neurons.of(some, model.widths), sign=SIGN),
        Region("tree", two, corner, Neurons.of(others, model.widths), image=1),
        Region("car", two, corner, Neurons.of(others, model.widths)),
    ]


@pytest.fixture(scope="module")
def found(small, regions):
    return concept_overlap(small[0], regions, quantile=0.9, draws=3, seed=2)


def iou(heat, mask, quantile):
    above = heat > np.quantile(heat, quantile)
    return (above & mask).sum() / (above | mask).sum()


def test_own_overlaps_are_those_of_each_neurons_field_and_of_the_mean_of_their_activations(small, regions, found):
    for number, region in enumerate(regions):
        field = receptive_field(small[0], region.inputs, region.neurons, image=region.image, sign=region.sign)
        mask = region.mask.numpy()
        each = [iou(heat, mask, 0.9) for heat in field.heat().numpy()]
        assert found.iou[number].item() == pytest.approx(np.mean(each), abs=1e-3)
        assert found.average_iou[number].item() == pytest.approx(iou(field.heat().numpy().mean(0), mask, 0.9), abs=1e-3)


def test_controls_are_random_sets_of_the_same_layers_and_signs_and_others_for_each_example(small, regions, found):
    model, region = small[0], regions[0]
    for draw in range(3):
        drawn = region.neurons.random_like(seed=2_000_000_000 + draw)
        assert [layer for _, layer, _ in drawn] == [2, 2, 0]
        signed = receptive_field(model, region.inputs, drawn, sign=SIGN[[0, 2, 1]])
        expected = np.mean([iou(heat, region.mask.numpy(), 0.9) for heat in signed.heat().numpy()])
        assert found.random_iou[draw, 0].item() == pytest.approx(expected, abs=1e-3)
    assert regions[1].neurons.random_like(seed=2_000_001_000) != regions[2].neurons.random_like(seed=2_000_002_000)


def test_the_bound_is_that_of_the_smaller_of_field_and_object_inside_of_the_larger(regions, found):
    areas = [0.5, 0.025, 0.025]
    np.testing.assert_allclose(found.area, areas, rtol=1e-6)
    np.testing.assert_allclose(found.bound, [0.1 / 0.5, 0.025 / 0.1, 0.025 / 0.1], rtol=1e-5)


def test_a_perfect_field_reaches_its_bound_and_a_disjoint_one_has_nothing(small, regions):
    model, region = small[0], regions[0]
    field = receptive_field(model, region.inputs, region.neurons[:1])
    own = field.mask(0.9)[0]
    both = [Region("own", region.inputs, mask, region.neurons[:1]) for mask in (own, ~own)]
    found = concept_overlap(model, both, quantile=0.9, draws=1)
    assert found.iou.tolist() == [1, 0] and found.bound[0].item() == pytest.approx(1, abs=0.05)


def test_the_table_has_the_means_of_each_concept_and_of_all(found, tmp_path):
    table = found.table()
    assert list(table.index) == ["car", "tree", "all"] and table["n"].tolist() == [2, 1, 3]
    car = [0, 2]
    assert table.loc["car", "iou"] == pytest.approx(found.iou[car].mean().item())
    assert table.loc["car", "random_low"] == pytest.approx(found.random_iou[:, car].mean(1).min().item())
    assert table.loc["all", "of_bound"] == pytest.approx((found.iou / found.bound).mean().item())
    again = ConceptOverlap.load(found.save(tmp_path / "overlap"))
    assert again.table().equals(table)


def test_empty_masks_no_regions_and_no_draws_are_refused(small, regions):
    region = regions[0]
    with pytest.raises(ValueError, match="has none"):
        concept_overlap(small[0], [Region("car", region.inputs, region.mask & False, region.neurons)])
    with pytest.raises(ValueError, match="got none"):
        concept_overlap(small[0], [])
    with pytest.raises(ValueError, match="at least one random draw"):
        concept_overlap(small[0], regions, draws=0)
