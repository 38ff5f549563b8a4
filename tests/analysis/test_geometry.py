"""Geometry of groups equals numpy's, separated clusters separate, and what reaches out or sits at an end is found."""

import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import silhouette_samples
from support import ask

from mmlens import hooks
from mmlens.analysis import group_geometry, probing_score, telomere_score


@pytest.fixture(scope="module")
def model(small):
    return small[0]


@pytest.fixture(scope="module")
def inputs(model):
    return ask(model, "padded")


def streams(model, inputs):
    names = ["blocks.0.hook_resid_pre", "blocks.*.hook_resid_post"]
    with torch.no_grad():
        _, cache = model.run_with_cache(inputs, names)
    return [value.double().numpy() for value in cache.values()]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def placed(model, inputs, make):
    """Return a hook that puts what `make(row, positions)` returns in the place of the whole stream, in every block."""
    stream = torch.stack([make(row) for row in range(len(inputs))])
    return [("blocks.*.hook_resid_post", hooks.replace(stream)), ("blocks.0.hook_resid_pre", hooks.replace(stream))]


def test_centroids_and_silhouettes_are_numpys_and_sklearns(model, inputs):
    found = group_geometry(model, inputs, groups=("image", "text"))
    for layer, stream in enumerate(streams(model, inputs)):
        for row in range(len(inputs)):
            masks = [inputs.mask(group)[row].numpy() for group in ("image", "text")]
            one, two = (unit(unit(stream[row][mask]).mean(0)) for mask in masks)
            assert found.cosine[layer, row, 0, 1] == pytest.approx(one @ two, abs=1e-5)
            points = np.concatenate([stream[row][mask] for mask in masks])
            labels = np.repeat([0, 1], [mask.sum() for mask in masks])
            expected = silhouette_samples(points, labels, metric="cosine").mean()
            assert found.silhouette[layer, row] == pytest.approx(expected, abs=1e-4)
    torch.testing.assert_close(found.cosine.diagonal(dim1=-2, dim2=-1), torch.ones(4, 2, 2))


def test_the_plane_is_that_of_the_largest_variance(model, inputs):
    found = group_geometry(model, inputs)
    stream = streams(model, inputs)[-1]
    points = np.concatenate([unit(stream[row][(inputs.mask("image") | inputs.mask("text"))[row].numpy()]) for row in (0, 1)])
    values = np.linalg.eigvalsh(np.cov(points.T, bias=True))[::-1]
    np.testing.assert_allclose(found.explained[-1], values[:2] / values.sum(), rtol=1e-4)
    np.testing.assert_allclose(found.plane[-1].var(0, correction=0), values[:2], rtol=1e-4)
    assert found.group.tolist() == [
        int(not inputs.mask("image")[row, position])
        for row, position in (inputs.mask("image") | inputs.mask("text")).nonzero().tolist()
    ]


def test_clusters_far_apart_have_a_silhouette_near_one_and_shuffled_ones_near_zero(model, inputs):
    generator = torch.Generator().manual_seed(0)
    image = inputs.mask("image")

    def clusters(row):
        noise = torch.randn(image.shape[1], model.cfg.d_model, generator=generator) * 0.05
        noise[image[row], 0] += 5
        noise[~image[row], 1] += 5
        return noise

    def nothing(row):
        return torch.randn(image.shape[1], model.cfg.d_model, generator=generator)

    with model.hooks(fwd_hooks=placed(model, inputs, clusters)):
        found = group_geometry(model, inputs)
    assert found.silhouette.min() > 0.95 and found.cosine[..., 0, 1].abs().max() < 0.1
    with model.hooks(fwd_hooks=placed(model, inputs, nothing)):
        assert group_geometry(model, inputs).silhouette.abs().max() < 0.1


def test_source_positions_that_lie_with_the_target_are_counted_and_random_ones_are_not(model, inputs):
    """Of the image positions, every fifth is put where text is: the share is theirs, and the reverse is 0."""
    image, text = inputs.mask("image"), inputs.mask("text")
    reaching = [image[row].nonzero()[::5, 0] for row in range(len(inputs))]

    def planted(row):
        stream = torch.randn(image.shape[1], model.cfg.d_model, generator=torch.Generator().manual_seed(row)) * 0.05
        stream[image[row], 0] += 5
        stream[text[row], 1] += 5
        stream[reaching[row], 0] -= 5
        stream[reaching[row], 1] += 5
        return stream

    with model.hooks(fwd_hooks=placed(model, inputs, planted)):
        found = probing_score(model, inputs, source="image", target="text", draws=5)
        reverse = probing_score(model, inputs, source="text", target="image", draws=5)
    for row in range(len(inputs)):
        assert found.share[:, row].tolist() == pytest.approx([len(reaching[row]) / int(image[row].sum())] * 4)
    assert reverse.share.max() == 0
    assert (found.tail > 3).all(), "few reach, and far"
    assert found.random_share.min() > 0.2, "with shuffled labels, nobody belongs anywhere"


def test_ends_that_lie_at_the_rim_of_text_are_found_and_random_text_is_not(model):
    """Special positions are put near text, further out than any of it."""
    inputs = model.to_inputs(["a red car on the left of the blue tree"] * 2)
    text, special = inputs.mask("text"), inputs.mask("special")
    assert special.any(1).all()

    def planted(row):
        stream = torch.randn(text.shape[1], model.cfg.d_model, generator=torch.Generator().manual_seed(row)) * 0.01
        stream[:, 0] += 1
        stream[special[row], 1] += 0.3
        return stream

    with model.hooks(fwd_hooks=placed(model, inputs, planted)):
        found = telomere_score(model, inputs, ks=(1, 3), draws=8)
    assert found.within.min() == 1 and found.outer.min() == 1
    assert found.random_outer.mean() < 0.5


def test_groups_that_overlap_or_are_not_there_are_refused(model, inputs):
    with pytest.raises(ValueError, match="groups share no position"):
        group_geometry(model, inputs, groups=("image", "all"))
    with pytest.raises(ValueError, match="row 0 has no audio"):
        probing_score(model, inputs, source="audio", target="text")
    with pytest.raises(ValueError, match="swap them"):
        telomere_score(model, inputs, ends="image", of="special")
    assert group_geometry(model, inputs, groups=("image", "text", "audio")).cosine[0, 0, 0, 2].isnan()


def test_umap_is_an_extra_and_says_so(model, inputs, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match=r"pip install \"mmlens\[umap\]\""):
        group_geometry(model, inputs, projection="umap")


def test_umap_puts_the_same_points_on_a_plane(model, inputs):
    pytest.importorskip("umap")
    found = group_geometry(model, inputs, projection="umap")
    assert found.plane.shape == (4, len(found.group), 2) and found.plane.isfinite().all()


def test_t_sne_puts_the_same_points_on_a_plane(model, inputs):
    found = group_geometry(model, inputs, projection="tsne")
    assert found.plane.shape == (4, len(found.group), 2) and found.explained.isnan().all()
