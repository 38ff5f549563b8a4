import numpy as np
import pytest
import torch
from support import picture

from mmlens import Grid, Neurons
from mmlens.analysis import receptive_field
from mmlens.analysis.fields import AverageField, upsample


def bilinear(cells, height, width):
    """Return the bilinear map of `cells` by a loop: a cell's value lies at its centre, edges repeat."""
    rows, columns = cells.shape
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            r = np.clip((y + 0.5) * rows / height - 0.5, 0, rows - 1)
            c = np.clip((x + 0.5) * columns / width - 0.5, 0, columns - 1)
            r0, c0 = int(r), int(c)
            r1, c1 = min(r0 + 1, rows - 1), min(c0 + 1, columns - 1)
            top = cells[r0, c0] * (1 - (c - c0)) + cells[r0, c1] * (c - c0)
            bottom = cells[r1, c0] * (1 - (c - c0)) + cells[r1, c1] * (c - c0)
            out[y, x] = top * (1 - (r - r0)) + bottom * (r - r0)
    return out


def test_heat_between_positions_is_bilinear_and_nan_where_the_tower_saw_nothing():
    values = torch.arange(6.0)[None]
    grid = Grid(2, 3, (4.0, 0.0, 16.0, 8.0), (20, 8))
    heat = upsample(values, grid)[0].numpy()
    np.testing.assert_allclose(heat[:, 4:16], bilinear(values.numpy().reshape(2, 3), 8, 12), atol=1e-6)
    assert np.isnan(heat[:, :4]).all() and np.isnan(heat[:, 16:]).all()


def test_a_field_is_the_activation_at_the_image_positions_of_its_row_and_picture(small):
    model, inputs, _ = small
    neurons = Neurons.of([(0, 1), (2, 5)], model.widths)
    found = receptive_field(model, inputs, neurons, row=1, sign=torch.tensor([1.0, -3.0]))
    _, cache = model.run_with_cache(inputs, "blocks.*.mlp.hook_post")
    here = inputs.mask("image:0")[1]
    torch.testing.assert_close(found.activations[0], cache["post", 0][1, here, 1])
    torch.testing.assert_close(found.activations[1], -cache["post", 2][1, here, 5])


def test_the_mask_covers_five_percent_and_overlap_is_one_with_itself_and_zero_elsewhere(small):
    model, inputs, _ = small
    found = receptive_field(model, inputs, Neurons.of([(1, 7)], model.widths))
    mask = found.mask(0.95)[0]
    assert mask.float().mean().item() == pytest.approx(0.05, abs=0.01)
    assert found.iou(mask).item() == 1
    assert found.iou(~mask).item() == 0
    assert found.bound(mask) == pytest.approx(1, abs=0.2)


def test_the_second_picture_of_a_row_has_its_own_field(small):
    model = small[0]
    inputs = model.to_inputs("<image> <image> which ?", images=[picture(1), picture(9, 31, 64)])
    found = receptive_field(model, inputs, Neurons.of([(0, 1)], model.widths), image=1)
    assert found.heat().shape == (1, 64, 31)
    with pytest.raises(ValueError, match="no image 2"):
        receptive_field(model, inputs, Neurons.of([(0, 1)], model.widths), image=2)


def test_the_average_map_is_the_map_of_the_mean_of_raw_activations(small):
    model, inputs, _ = small
    neurons = Neurons.of([(0, 1), (2, 5), (1, 3)], model.widths)
    found = receptive_field(model, inputs, neurons, sign=torch.tensor([1.0, -1.0, 1.0]))
    mean = found.average(1, 3)
    values = found.activations.numpy()
    np.testing.assert_allclose(mean.activations.numpy(), [values[0], values.mean(0)], rtol=1e-6)
    heat = mean.heat()[1].numpy()
    np.testing.assert_allclose(heat, bilinear(values.mean(0).reshape(found.grid.rows, -1), *heat.shape), atol=1e-5)
    assert (mean.mask(0.9)[1].numpy() == (heat > np.quantile(heat, 0.9))).mean() > 0.999
    assert torch.equal(mean.mask()[0], found.mask()[0]) and found.average().ks == (3,)
    with pytest.raises(ValueError, match="1 to 3 neurons"):
        found.average(4)


def test_an_average_map_saves_and_loads(small, tmp_path):
    model, inputs, _ = small
    mean = receptive_field(model, inputs, Neurons.of([(0, 1), (2, 5)], model.widths)).average(2)
    again = AverageField.load(mean.save(tmp_path / "mean"), model=model)
    assert again.grid == mean.grid and torch.equal(again.activations, mean.activations) and again.neurons == mean.neurons
