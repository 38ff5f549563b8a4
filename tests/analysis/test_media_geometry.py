"""Where media lie in a tower is what the plain tower says of each alone; planted labels separate, shuffled ones do not."""

from functools import partial

import numpy as np
import pytest
import raw
import torch
from sklearn.metrics import silhouette_samples
from support import ask, picture, questions

from mmlens import hooks
from mmlens.analysis import MediaGeometry, media_geometry


def tower_of(model):
    return next(module for module in model.widths if module in ("vision", "audio"))


def alone(model, plain, name, kind):
    """Return what the plain tower gives for each row on its own: a list of [entry, pos, d], real positions only."""
    found = []
    for text, media in questions(model, kind):
        inputs = model.to_inputs(text, **media)
        with torch.no_grad():
            entries = raw.read(plain, inputs, [name])[1][name]
        if "feature_attention_mask" in inputs.tower:  # a tower of sounds pads them to a window of its own
            steps = (inputs.tower["feature_attention_mask"].sum(-1) - 1) // 2 + 1
            entries = [entry[:count] for entry, count in zip(entries, steps.tolist(), strict=True)]
        found.append(list(entries) if entries[0].ndim == 2 else [entries])
    return found


@pytest.mark.dear
def test_an_embedding_is_the_mean_of_what_the_plain_tower_says_of_a_rows_media_alone(model, plain, batches):
    tower = tower_of(model)
    layer = model.live_layers[tower] - 1
    rows = [
        row for kind in ("padded", "two") for row in alone(model, plain, f"{tower}.blocks.{layer}.hook_resid_post", kind)
    ]
    find = partial(media_geometry, model, [batches["padded"], batches["two"]], ["b", "a", "b"], module=tower)
    found = find()
    raw.same(found.embedding, torch.stack([torch.cat(entries).mean(0) for entries in rows]))
    assert (found.layer, found.labels, found.label.tolist()) == (layer, ("b", "a"), [0, 1, 0])
    if model.family.model_type.startswith(("qwen2_vl", "qwen2_5_vl", "qwen3_vl")):
        with pytest.raises(ValueError, match="has no CLS: take pool='mean'"):
            find(pool="first")
    else:
        firsts = torch.stack([torch.stack([entry[0] for entry in entries]).mean(0) for entries in rows])
        raw.same(find(pool="first").embedding, firsts)


@pytest.fixture(scope="module")
def many(llava):
    """Twelve pictures in batches of four, and their labels."""
    inputs = [llava.to_inputs(["what is it"] * 4, images=[picture(4 * b + i) for i in range(4)]) for b in range(3)]
    return inputs, ["street", "scan", "page"] * 4


def test_the_plane_is_numpys_svd_of_the_embeddings_and_silhouettes_are_sklearns(llava, many):
    found = media_geometry(llava, *many)
    points = found.embedding.double().numpy()
    u, s, _ = np.linalg.svd(points - points.mean(0), full_matrices=False)
    for axis in (0, 1):
        sign = np.sign(u[:, axis] @ found.plane[:, axis].numpy())
        np.testing.assert_allclose(found.plane[:, axis], sign * u[:, axis] * s[axis], atol=1e-4 * s[0])
    np.testing.assert_allclose(found.explained, s[:2] ** 2 / (s**2).sum(), rtol=1e-4)
    expected = silhouette_samples(points, many[1], metric="cosine").mean()
    assert float(found.silhouette) == pytest.approx(expected, abs=1e-4)
    assert found.random_silhouette.shape == (10,) and found.random_silhouette.unique().numel() > 1


def test_a_generator_of_batches_and_one_batch_of_all_of_them_are_the_same(llava, many):
    inputs, labels = many
    whole = llava.to_inputs(["what is it"] * 12, images=[picture(index) for index in range(12)])
    one, parts = media_geometry(llava, whole, labels), media_geometry(llava, (batch for batch in inputs), labels)
    raw.same(one.embedding, parts.embedding)
    assert parts.provenance.inputs == tuple(batch.digest() for batch in inputs)


def test_pictures_that_are_put_by_label_have_a_silhouette_near_one_and_shuffled_labels_do_not(llava, many):
    """What leaves block 0 of the tower is put there; its layer 1 reads it."""
    _, labels = many
    whole = llava.to_inputs(["what is it"] * 12, images=[picture(index) for index in range(12)])
    width = media_geometry(llava, whole, labels).embedding.shape[1]
    planted = 0.05 * torch.randn(12, 25, width, generator=torch.Generator().manual_seed(0))
    for index in range(12):
        planted[index, :, index % 3] += 5
    with llava.hooks(fwd_hooks=[("vision.blocks.0.hook_resid_post", hooks.replace(planted))]):
        found = media_geometry(llava, whole, labels, layer=0)
        raw.same(found.embedding, planted.mean(1))
        first = media_geometry(llava, whole, labels, layer=0, pool="first")
        raw.same(first.embedding, planted[:, 0])
    assert found.silhouette > 0.95 and found.random_silhouette.max() < 0.5
    assert float(found.explained.sum()) > 0.95, "three clusters lie in a plane"
    one = media_geometry(llava, whole, ["page"] * 12, layer=0)
    assert one.silhouette.isnan() and one.random_silhouette.isnan().all()


def test_a_layer_that_the_model_does_not_read_can_be_looked_at_and_none_beyond(llava, many):
    inputs, labels = many
    assert llava.live_layers["vision"] == 2
    last = media_geometry(llava, inputs, labels, layer=2)
    assert last.layer == 2 and not torch.equal(last.embedding, media_geometry(llava, inputs, labels).embedding)
    for layer in (3, -1):
        with pytest.raises(IndexError, match=f"vision has the layers 0 to 2, got {layer}"):
            media_geometry(llava, inputs, labels, layer=layer)


def test_what_has_no_place_in_a_tower_is_refused_in_words(llava, many):
    inputs, labels = many
    for module in ("audio", "language", "projector"):
        with pytest.raises(ValueError, match=f"media lie in a tower, .* has vision; got '{module}'"):
            media_geometry(llava, inputs, labels, module=module)
    with pytest.raises(ValueError, match=r"row 1 of .* has no media"):
        media_geometry(llava, ask(llava, "mixed"), ["a", "b", "c"])
    with pytest.raises(ValueError, match="two rows or more, got one"):
        media_geometry(llava, ask(llava, "one"), ["a"])
    with pytest.raises(ValueError, match="got 11 labels for 12 or more rows"):
        media_geometry(llava, inputs, labels[:-1])
    with pytest.raises(ValueError, match="got 13 labels for 12 rows"):
        media_geometry(llava, inputs, [*labels, "scan"])
    with pytest.raises(ValueError, match="got none"):
        media_geometry(llava, [], [])


def test_t_sne_claims_no_share_of_variance_and_a_result_loads_as_it_was_saved(llava, many, tmp_path):
    found = media_geometry(llava, *many, projection="tsne", draws=0)
    assert found.plane.shape == (12, 2) and found.explained.isnan().all() and found.random_silhouette.shape == (0,)
    loaded = MediaGeometry.load(found.save(tmp_path / "media"), model=llava)
    assert torch.equal(loaded.plane, found.plane) and torch.equal(loaded.silhouette, found.silhouette)
    assert (loaded.labels, loaded.projection) == (("street", "scan", "page"), "tsne")
