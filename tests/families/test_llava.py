"""LLaVA: which settings are understood, which part of the picture is kept, and how much of the tower is read."""

import copy
import json

import pytest
import raw
import torch
from support import ask, load, picture
from transformers import AutoProcessor, LlavaConfig, LlavaForConditionalGeneration

from mmlens import HookedMLLM
from mmlens.families import FAMILIES, UnsupportedModel, family_of, llava
from mmlens.liveness import InertHook, lookup
from mmlens.media import Media
from mmlens.testing import tiny


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("vision_feature_layer", [-2, -1]),
        ("vision_feature_select_strategy", "cls"),
        ("vision_config.model_type", "vit"),
        ("text_config.model_type", "gpt2"),
    ],
)
def test_a_setting_that_is_not_understood_is_refused_by_name(small, setting, value):
    config = copy.deepcopy(small.hf_model.config)
    llava.check(config)
    owner, _, name = setting.rpartition(".")
    object.__setattr__(getattr(config, owner) if owner else config, name, value)
    with pytest.raises(UnsupportedModel, match=name):
        llava.check(config)


def test_a_model_is_its_model_types_family():
    assert family_of(LlavaConfig().model_type) is FAMILIES["llava"] is llava.FAMILY
    with pytest.raises(UnsupportedModel, match=r"llava.*'bert'"):
        family_of("bert")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(patch_size=10), "not understood"),
        (dict(num_additional_image_tokens=3), "not understood"),
        (dict(vision_feature_select_strategy="full"), "not understood"),
    ],
)
def test_a_processor_whose_positions_do_not_fit_its_grid_is_refused(small_folder, change, says):
    processor = AutoProcessor.from_pretrained(small_folder)
    for name, value in change.items():
        setattr(processor, name, value)
    if "patch_size" in change:  # transformers counts with it too: let only the crop disagree
        processor.image_processor.crop_size = {"height": 35, "width": 35}
        processor.num_additional_image_tokens = 2
    with pytest.raises(UnsupportedModel, match=says):
        llava.encode(processor, "see", Media(images=(picture(0),)))


def test_a_way_of_resizing_that_is_not_understood_is_refused(small_folder):
    processor = AutoProcessor.from_pretrained(small_folder)
    processor.image_processor.size = {"longest_edge": 30}
    with pytest.raises(UnsupportedModel, match="longest_edge"):
        llava.grid(processor, picture(0))


def test_clip_keeps_a_centred_square_and_siglip_the_whole_picture(tmp_path):
    for family, region in [("llava-clip-llama", (20.0, 0.0, 80.0, 60.0)), ("llava-siglip-qwen2", (0.0, 0.0, 100.0, 60.0))]:
        processor = AutoProcessor.from_pretrained(tiny(family, tmp_path / family))
        assert llava.grid(processor, picture(0, 100, 60)).region == pytest.approx(region)
        assert len(llava.grid(processor, picture(0, 100, 60))) == 25


def test_what_a_centre_crop_cuts_off_does_not_change_the_logits(small):
    wide = picture(0, 100, 60)
    left, _, right, _ = (round(edge) for edge in small.to_inputs("see", images=wide).grids[0][0].region)
    painted, inside = wide.copy(), wide.copy()
    painted.paste((255, 0, 0), (0, 0, left - 6, 60))
    painted.paste((0, 255, 0), (right + 6, 0, 100, 60))
    inside.paste((255, 0, 0), (left, 0, left + 12, 60))
    with torch.no_grad():
        logits, outside, changed = (small(small.to_inputs("see", images=image)) for image in (wide, painted, inside))
    torch.testing.assert_close(outside, logits)
    raw.differs(changed, logits)


@pytest.mark.parametrize(("feature_layer", "live"), [(-1, 3), (-2, 2), (1, 1), (-3, 1)])
@torch.no_grad()
def test_blocks_behind_the_layer_that_is_read_can_not_be_edited_and_do_not_matter(tmp_path, feature_layer, live):
    folder = tiny("llava-clip-llama", tmp_path, feature_layer=feature_layer)
    model, plain = (
        HookedMLLM.from_pretrained(folder, device="cpu"),
        LlavaForConditionalGeneration.from_pretrained(folder).eval(),
    )
    inputs = ask(model, "one")
    before = raw.logits(plain, inputs)
    raw.same(model(inputs), before)
    assert llava.live_layers(plain.config) == {"vision": live}
    for layer in range(3):
        name = f"vision.blocks.{layer}.mlp.hook_post"
        after = raw.logits(plain, inputs, {name: lambda x: x * 0})
        edit = [(name, lambda x, hook: x * 0)]
        if layer < live:
            raw.differs(after, before)
            raw.same(model.run_with_hooks(inputs, fwd_hooks=edit), after)
        else:
            assert torch.equal(after, before)
            with pytest.raises(InertHook, match=r"projector\.hook_in"):
                model.run_with_hooks(inputs, fwd_hooks=edit)
    last = f"vision.blocks.{live - 1}.hook_resid_post"  # transformers has recorded it before the hook point
    assert lookup(last, model.points.read_only) == "projector.hook_in"


@torch.no_grad()
def test_the_stream_the_projector_reads_is_the_last_live_blocks(tmp_path):
    model = HookedMLLM.from_pretrained(tiny("llava-siglip-qwen2", tmp_path), device="cpu")
    _, cache = model.run_with_cache(ask(model, "two"))
    raw.same(cache["projector.hook_in"], cache["vision.blocks.1.hook_resid_post"], relative=0)


def test_transformerlens_own_adapter_is_left_as_it_was():
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    assert SUPPORTED_ARCHITECTURES["LlavaForConditionalGeneration"] is not llava.LlavaAdapter


LLAVA = pytest.mark.parametrize("folder", ["llava-clip-llama", "llava-siglip-qwen2", "pictoworld-frozen"], indirect=True)


@LLAVA
@torch.no_grad()
def test_image_positions_enter_the_stream_as_the_projectors_output(model, plain, batches):
    for kind in ("one", "mixed", "two"):
        inputs = batches[kind]
        _, truth = raw.read(plain, inputs, ["projector.hook_out", "hook_embed"])
        _, cache = model.run_with_cache(inputs, "blocks.0.hook_resid_pre")
        stream, image = cache["blocks.0.hook_resid_pre"], inputs.mask("image")
        raw.same(stream[image], truth["projector.hook_out"].flatten(0, 1))
        raw.same(stream[~image], truth["hook_embed"][~image])


@torch.no_grad()
def test_a_sliding_window_is_what_transformers_makes_of_it(tmp_path):
    """Qwen2 slides from layer `max_window_layers` on: Qwen2-Audio's published settings have it too."""
    folder = tiny("llava-siglip-qwen2", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= dict(use_sliding_window=True, sliding_window=5, max_window_layers=1)
    config["text_config"].pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))
    model, plain = load(folder), LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="sdpa").eval()
    assert plain.config.text_config.layer_types == ["full_attention"] + ["sliding_attention"] * 2
    inputs = ask(model, "mixed")
    real, patterns = inputs.mask("all"), "blocks.*.hook_pattern"
    truth = raw.logits(plain, inputs)
    logits, cache = model.run_with_cache(inputs, patterns)
    raw.same(model(inputs)[real], truth[real])
    raw.same(logits[real], truth[real])
    seen = [(cache[f"blocks.{layer}.attn.hook_pattern"][0, 0, -1] > 0).sum() for layer in (0, 1, 2)]
    assert seen[0] > 5 and seen[1:] == [5, 5]
    pad = model.tokenizer.pad_token_id
    assert torch.equal(
        model.generate(inputs, max_new_tokens=6).tokens, raw.generate(plain, inputs, max_new_tokens=6, pad_token_id=pad)
    )
