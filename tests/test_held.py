"""Which row of a batch each vector of an activation belongs to: in the language model, and in towers of every kind."""

import re
from dataclasses import replace

import numpy as np
import pytest
import raw
import torch
from support import ask, clip, load, picture, placeholder, sound

from mmlens.families import idefics3
from mmlens.hooks import neuron_hook
from mmlens.inputs import MODALITIES, PAD, Inputs, Row
from mmlens.testing import tiny

# Of other sizes and lengths, so that rows have other numbers of tiles, patches and steps.
MAKE = {
    "image": lambda seed: picture(seed, (50, 20, 33)[seed % 3], (40, 61, 32)[seed % 3]),
    "video": lambda seed: clip(seed, frames=2),
    "audio": lambda seed: sound(seed, seconds=(0.5, 0.21, 0.9)[seed % 3]),
}
ARGUMENT = {"image": "images", "video": "videos", "audio": "audio"}


def rows_of(model):
    """Return rows, as (text, media by argument): one medium, none, two of them, and each other kind alone and beside it."""
    first, *others = model.family.takes
    token, one = placeholder(model), {kind: (lambda seed, kind=kind: MAKE[kind](seed)) for kind in model.family.takes}
    rows = [("what is in the picture ?", {first: [one[first](0)]}), ("a red car", {})]
    rows += [(f"{token} and {token} show the", {first: [one[first](1), one[first](2)]})]
    for kind in others:
        rows += [("a", {kind: [one[kind](0)]})]
        both = f"{placeholder(model, kind)} beside {token}"
        rows += [(both, {kind: [one[kind](1)], first: [one[first](1)]})]
    return rows


def batch(model, rows):
    media = {ARGUMENT[kind]: [held.get(kind) for _, held in rows] for kind in model.family.takes}
    return model.to_inputs([text for text, _ in rows], **media)


def posts(model, inputs):
    """Return the activations of every module's neurons, in a middle layer, by module."""
    names = {module: neuron_hook(module, len(widths) // 2, "post") for module, widths in model.widths.items()}
    chosen = [name for module, name in names.items() if inputs.tower or module == "language"]
    with torch.no_grad():
        cache = model.run_with_cache(inputs, chosen)[1]
    return {module: cache[name] for module, name in names.items() if name in chosen}


def test_what_a_batch_holds_of_each_row_is_what_the_row_alone_holds(model):
    rows = rows_of(model)
    together = batch(model, rows)
    whole = posts(model, together)
    assert set(whole) == set(model.widths)
    held = {module: together.held(module, activation.shape[:-1]) for module, activation in whole.items()}
    for module, (owner, kind) in held.items():
        assert owner.shape == kind.shape == whole[module].shape[:-1]
        assert ((owner == -1) == (kind == MODALITIES.index("pad"))).all()
    for number, row in enumerate(rows):
        one = batch(model, [row])
        alone = posts(model, one)
        for module, (owner, kind) in held.items():
            if module not in alone:
                assert not (owner == number).any()
                continue
            own, own_kind = one.held(module, alone[module].shape[:-1])
            assert (own >= 0).any() and (owner == number).sum() == (own == 0).sum()
            raw.same(whole[module][owner == number], alone[module][own == 0])
            assert torch.equal(kind[owner == number], own_kind[own == 0])
            assert (own >= 0).all() or module in ("audio", "projector")  # nothing of a row alone is padding, but of a sound


def test_a_tower_holds_what_its_media_are_and_a_qformer_the_words_that_it_reads(model):
    rows = rows_of(model)
    inputs = batch(model, rows)
    for module, activation in posts(model, inputs).items():
        owner, held = inputs.held(module, activation.shape[:-1])
        for number, (_, media) in enumerate(rows):
            kinds = {MODALITIES[index] for index in held[owner == number].tolist()}
            if module == "language":
                assert set(media) <= kinds <= {*media, "text", "special"}
            elif module == "qformer_text":
                assert kinds in ([{"text"}, {"text", "special"}] if media else [set()])
            else:
                assert kinds == set(media)


# ---------------------------------------------------------------- padding inside a tower


def test_steps_behind_a_sound_are_padding_as_transformers_counts_them(tmp_path):
    model = load(tiny("qwen2-audio", tmp_path))
    sounds = [sound(0, 0.3), (np.zeros(14_400, np.float32), 16_000), sound(1, 0.2137), sound(2, 1.0)]
    inputs = model.to_inputs(["a", "the", "see", "car"], audio=sounds)
    lengths = model.hf_model.model.audio_tower._get_feat_extract_output_lengths(
        inputs.tower["feature_attention_mask"].sum(-1)
    )
    assert len(set(lengths[0].tolist())) == 4
    for module, window, real in (("audio", 50, lengths[0]), ("projector", 25, lengths[1])):
        owner, _ = inputs.held(module, (4, window))
        for number in range(4):  # the first ones are real, the others are not
            assert owner[number].tolist() == [number] * int(real[number]) + [-1] * (window - int(real[number]))
    assert torch.equal(lengths[1], inputs.mask("audio").sum(1))


@pytest.mark.parametrize("family", ["idefics3", "smolvlm"])
def test_patches_that_are_padding_are_those_that_transformers_hides(family, tmp_path):
    model = load(tiny(family, tmp_path))
    inputs, seen = ask(model, "one"), {}
    mask = inputs.tower["pixel_attention_mask"].clone()
    patch = model.processor.patch_size
    mask[0, 1, :, 2 * patch + 1 :] = 0  # two patches and a bit: a patch with one real pixel is looked at
    mask[0, 2, patch:] = 0
    padded = replace(inputs, tower={**inputs.tower, "pixel_attention_mask": mask})
    tower = model.hf_model.model.vision_model

    def look(module, args, kwargs):
        seen["mask"] = kwargs["patch_attention_mask"].flatten(1)

    handle = tower.register_forward_pre_hook(look, with_kwargs=True)
    try:
        model(padded)
    finally:
        handle.remove()
    inside = idefics3.seen(model.processor, padded.tower, ["image"])["vision"]
    assert torch.equal(inside != PAD, seen["mask"]) and not seen["mask"].all()
    owner, kind = replace(padded, inside={"vision": inside}).held("vision", inside.shape)
    assert torch.equal(owner >= 0, seen["mask"]) and torch.equal(kind, inside)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        ("language", (3, 4)),
        ("language", (3,)),
        ("vision", (3, 26)),
        ("vision", (2, 26, 4)),
        ("vision", (26,)),
        ("vision", ()),
        ("projector", (4, 25)),
    ],
)
def test_a_shape_that_the_inputs_do_not_have_is_refused(small, module, shape):
    inputs = ask(small, "mixed")
    with pytest.raises(ValueError, match=rf"activations of {module} .* got {re.escape(str(list(shape)))}"):
        inputs.held(module, shape)


def test_a_tower_on_text_alone_is_refused(small):
    with pytest.raises(ValueError, match=r"\[0, 26\] .* got \[1, 26\]"):
        ask(small, "text").held("vision", (1, 26))


def test_rows_that_say_nothing_have_one_entry_for_each_medium():
    def row(media):
        tokens = [5, *[7] * media]
        return Row("", tokens, ["text", *["image"] * media], [-1, *range(media)], {}, (None,) * media, ("",) * media)

    inputs = Inputs.from_rows([row(2), row(0), row(1)], pad=0)
    assert inputs.entries == ((0, 0, 1), (0, 1, 1), (2, 0, 1))
    assert inputs.held("vision", (3, 2))[0].tolist() == [[0, 0], [0, 0], [2, 2]]
