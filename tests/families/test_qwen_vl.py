"""Qwen-VL: pictures and videos in their own sizes, a packed tower, positions in three axes."""

import copy
import json

import numpy as np
import pytest
import raw
import recorded
import torch
from PIL import Image
from support import clip, leaves_no_hooks, load, picture
from transformers import AutoConfig, Qwen3VLMoeConfig

from mmlens import hooks
from mmlens.families import FAMILIES, UnsupportedModel, family_of, qwen_processor
from mmlens.hooks import module_of
from mmlens.media import Media, Video
from mmlens.testing import tiny

NAMES = ["qwen2-vl", "qwen2.5-vl", "qwen3-vl"]
QWEN = pytest.mark.parametrize("folder", NAMES, indirect=True)
KINDS = ("video", "both", "videos", "sizes")


def prompt(model, kind):
    """Return inputs with videos, alone and beside pictures, and with pictures of different sizes."""
    if kind == "video":
        return model.to_inputs("what is in the picture ?", videos=clip(0, 3))
    if kind == "both":
        image, video = model.processor.image_token, model.processor.video_token
        text = f"{video} and {image} show the red {image}"
        return model.to_inputs(text, images=[picture(1), picture(2, 60, 20)], videos=(clip(3, 4, 24, 24), 4.0))
    if kind == "videos":
        texts, videos = ["the red car", "a", "see"], [[clip(0, 2), clip(5, 3, 16, 40)], None, clip(2, 4)]
        return model.to_inputs(texts, videos=videos, images=[None, picture(4), None])
    return model.to_inputs(["see", "which object is red"], images=[[picture(0), picture(1, 20, 60)], picture(2, 9, 9)])


@pytest.fixture(scope="module")
def small_qwen(tmp_path_factory):
    return load(tiny("qwen2-vl", tmp_path_factory.mktemp("small")))


@pytest.fixture(scope="module")
def prompts(model):
    return {kind: prompt(model, kind) for kind in KINDS}


# ---------------------------------------------------------------- the same numbers as transformers


@QWEN
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_videos_and_pictures_of_any_size_say_what_transformers_says(model, plain, prompts, kind):
    inputs, real = prompts[kind], prompts[kind].mask("all")
    for attention in ("sdpa", "eager"):
        plain.set_attn_implementation(attention)
        try:
            truth = raw.logits(plain, inputs)
        finally:
            plain.set_attn_implementation("sdpa")
        raw.same(model(inputs)[real], truth[real])
    logits, cache = model.run_with_cache(inputs, ["*.hook_pattern", "*.hook_attn_scores", "vision.*.hook_q"])
    raw.same(logits[real], raw.logits(plain, inputs)[real])
    patches = sum(value.shape[0] for name, value in inputs.tower.items() if name.startswith("pixel_values"))
    for name in ("vision.blocks.0.attn.hook_pattern", "vision.blocks.2.attn.hook_pattern"):
        assert cache[name].shape == (1, 3, patches, patches)
        torch.testing.assert_close(cache[name].sum(-1), torch.ones(1, 3, patches))


@QWEN
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_about_videos_is_what_transformers_writes(model, plain, prompts, kind):
    options = dict(max_new_tokens=6, pad_token_id=model.tokenizer.pad_token_id)
    truth = raw.generate(plain, prompts[kind], **options)
    assert torch.equal(model.generate(prompts[kind], max_new_tokens=6).tokens, truth)


@QWEN
@pytest.mark.parametrize("kind", ["video", "sizes"])
@torch.no_grad()
def test_edits_of_videos_and_sizes_equal_the_same_edits_by_raw_torch_hooks(model, plain, prompts, kind):
    inputs, real = prompts[kind], prompts[kind].mask("all")
    unedited, seen = raw.read(plain, inputs, raw.names(plain))
    _, cache = model.run_with_cache(inputs, list(seen))
    for name in seen:
        ours, theirs = cache[name], seen[name]
        if module_of(name) == "language":
            ours, theirs = ours[real], theirs[real]
        raw.same(ours.reshape(theirs.shape), theirs)
        delta = raw.noise(seen[name])
        truth = raw.logits(plain, inputs, {name: lambda x, delta=delta: x + delta})
        ours = model.run_with_hooks(inputs, fwd_hooks=[(name, lambda x, hook, delta=delta: x + delta.view_as(x))])
        raw.same(ours[real], truth[real])
        raw.differs(truth[real], unedited[real])


@QWEN
@torch.no_grad()
def test_pictures_and_videos_go_through_the_tower_together_and_every_point_fires_once(model, plain, prompts):
    inputs, fired = prompts["both"], []
    reads = [("vision.*", lambda x, hook: fired.append(hook.name)), ("projector.*", lambda x, hook: fired.append(hook.name))]
    with leaves_no_hooks(model):
        model.run_with_hooks(inputs, fwd_hooks=reads)
    assert len(set(fired)) == len(fired)
    split = []
    raw.logits(plain, inputs, {"projector.hook_out": split.append})
    assert len(split) == 2  # transformers runs the tower for pictures, then for videos
    _, cache = model.run_with_cache(inputs, ["projector.hook_out", "blocks.0.hook_resid_pre"])
    raw.same(cache["projector.hook_out"], torch.cat(split))
    _, stream = raw.read(plain, inputs, ["blocks.0.hook_resid_pre"])
    raw.same(cache["blocks.0.hook_resid_pre"], stream["blocks.0.hook_resid_pre"])
    edit = [("projector.hook_out", hooks.replace(0.0))]
    silent = raw.generate(plain, inputs, max_new_tokens=5, pad_token_id=model.tokenizer.pad_token_id)
    with raw.edited(plain, {"projector.hook_out": lambda x: x * 0}):
        truth = raw.generate(plain, inputs, max_new_tokens=5, pad_token_id=model.tokenizer.pad_token_id)
    assert torch.equal(model.generate(inputs, max_new_tokens=5, fwd_hooks=edit).tokens, truth)
    assert torch.equal(model.generate(inputs, max_new_tokens=5).tokens, silent)


# ---------------------------------------------------------------- the packed tower


@QWEN
@torch.no_grad()
def test_a_towers_queries_keys_and_values_are_those_that_transformers_compares(model, reference, prompts):
    inputs, seen = prompts["both"], {"q": [], "k": [], "v": []}
    attention = reference.model.visual.blocks[1].attn
    plain_function = raw._attention

    def look(module, query, key, value, *args, **kwargs):
        if module is attention:
            for part, heads in zip("qkv", (query, key, value), strict=True):
                seen[part].append(heads.transpose(1, 2))
        return plain_function(module, query, key, value, *args, **kwargs)

    raw.AttentionInterface.register(raw.REFERENCE, look)
    try:
        raw.logits(reference, inputs)
    finally:
        raw.AttentionInterface.register(raw.REFERENCE, plain_function)
    names = [f"vision.blocks.1.attn.hook_{part}" for part in "qkv"]
    logits, cache = model.run_with_cache(inputs, names)
    for part, name in zip("qkv", names, strict=True):
        assert len(seen[part]) > 2  # chunk by chunk
        raw.same(cache[name], torch.cat(seen[part], dim=1))
    real = inputs.mask("all")
    raw.same(logits[real], raw.logits(reference, inputs)[real])
    zero = model.run_with_hooks(inputs, fwd_hooks=[("vision.blocks.1.attn.hook_v", hooks.replace(0.0, heads=[1]))])
    same = model.run_with_hooks(inputs, fwd_hooks=[("vision.blocks.1.attn.hook_z", hooks.replace(0.0, heads=[1]))])
    raw.same(zero[real], same[real])
    raw.differs(zero[real], logits[real])


@QWEN
@torch.no_grad()
def test_patches_of_different_pictures_and_frames_do_not_see_each_other(model, prompts):
    inputs, name = prompts["both"], "vision.blocks.1.attn.hook_pattern"
    _, cache = model.run_with_cache(inputs, name)
    sizes = [4 * len(grid) for place in inputs.grids[0] for grid in getattr(place, "grids", (place,))]
    apart = torch.block_diag(*(torch.ones(size, size) for size in sizes)) == 0
    assert len(sizes) == 4 and (cache[name][..., apart] == 0).all() and (cache[name][..., ~apart] > 0).all()


def windows(place, side=2):
    """Return, for each position of a picture or video in the tower's order, which it is in the stream's, and its window."""
    order, start, number = [], 0, 0
    for grid in getattr(place, "grids", (place,)):
        for top in range(0, grid.rows, side):
            for left in range(0, grid.columns, side):
                for row in range(top, min(top + side, grid.rows)):
                    for column in range(left, min(left + side, grid.columns)):
                        order.append((start + row * grid.columns + column, number))
                number += 1
        start += len(grid)
    return order


@pytest.mark.parametrize("folder", ["qwen2.5-vl"], indirect=True)
@torch.no_grad()
def test_windows_of_the_tower_are_two_by_two_positions_and_see_only_themselves(model, prompts):
    inputs = prompts["both"]
    names = ["vision.hook_embed", "vision.blocks.0.hook_resid_pre", "vision.blocks.*.attn.hook_pattern"]
    _, cache = model.run_with_cache(inputs, names)
    order, window = [], []
    for place in inputs.grids[0]:
        first, before = len(order), len(set(window))
        order += [first + position for position, _ in windows(place)]
        window += [before + number for _, number in windows(place)]
    assert order != sorted(order)
    patches = cache["vision.hook_embed"].unflatten(0, (-1, 4))[order].flatten(0, 1)
    raw.same(cache["vision.blocks.0.hook_resid_pre"], patches, relative=0)
    inside = torch.tensor(window).repeat_interleave(4)
    apart = inside[:, None] != inside
    for layer in (0, 2):
        pattern = cache[f"vision.blocks.{layer}.attn.hook_pattern"]
        assert (pattern[..., apart] == 0).all() and (pattern[..., ~apart] > 0).all()
    assert (cache["vision.blocks.1.attn.hook_pattern"][..., apart] > 0).any()  # a whole picture


@pytest.mark.parametrize("folder", ["qwen2.5-vl"], indirect=True)
@torch.no_grad()
def test_a_videos_rate_is_told_to_the_model_and_two_a_second_is_meant_where_there_is_none(model, plain):
    frames, logits = clip(0, 6), {}
    for rate in (None, 1.0, 2.0):
        inputs = model.to_inputs("see", videos=frames if rate is None else (frames, rate))
        logits[rate] = model(inputs)
        raw.same(logits[rate], raw.logits(plain, inputs))
        assert inputs.tower["second_per_grid_ts"].tolist() == [2 / (rate or 2.0)]
    assert torch.equal(logits[None], logits[2.0])
    raw.differs(logits[1.0], logits[2.0])


# ---------------------------------------------------------------- DeepStack

QWEN3 = pytest.mark.parametrize("folder", ["qwen3-vl"], indirect=True)


def scattered(inputs, images, videos):
    """Return features [position, d_model] of pictures and of videos where they stand in the stream, by a loop."""
    whole = torch.zeros(*inputs.tokens.shape, images.shape[-1])
    rows = {"image": iter(images), "video": iter(videos)}
    for row, position in np.ndindex(*inputs.tokens.shape):
        for kind in ("image", "video"):
            if inputs.mask(kind)[row, position]:
                whole[row, position] = next(rows[kind])
    return whole


@QWEN3
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_stream_before_a_block_is_the_stream_behind_the_last_one_plus_deepstack(model, plain, prompts, kind):
    inputs = prompts[kind]
    _, cache = model.run_with_cache(inputs)
    parts, labels = cache.decompose_resid(return_labels=True)
    names = ["embed"]
    for layer in range(3):
        names += [f"{layer}_attn_out", f"{layer}_mlp_out", *([f"{layer}_deepstack"] if layer < 2 else [])]
    assert labels == names
    for layer in (0, 1):
        calls = []
        raw.logits(plain, inputs, {f"deepstack.{layer}.hook_out": calls.append})
        kinds = {kind: torch.empty(0, calls[0].shape[-1]) for kind in ("image", "video")}
        kinds |= dict(zip([kind for kind in kinds if inputs.mask(kind).any()], calls, strict=True))
        added = scattered(inputs, kinds["image"], kinds["video"])
        raw.same(parts[labels.index(f"{layer}_deepstack")], added)
        before, after = cache[f"blocks.{layer}.hook_resid_post"], cache[f"blocks.{layer + 1}.hook_resid_pre"]
        raw.same(before + added, after, relative=1e-6)
        raw.differs(before, after)


@QWEN3
@torch.no_grad()
def test_every_sum_of_components_counts_deepstack_as_one_of_its_own(model, plain, prompts):
    for kind in ("both", "videos"):
        inputs, real = prompts[kind], prompts[kind].mask("all")
        names = ["blocks.1.hook_resid_pre", "blocks.1.hook_resid_mid", "blocks.2.hook_resid_pre", "ln_final.hook_in"]
        logits, cache = model.run_with_cache(inputs)
        truth = [cache[name][real] for name in names]
        _, own = raw.read(plain, inputs, ["ln_final.hook_in"])
        raw.same(truth[-1], own["ln_final.hook_in"][real])
        for layer, mlp_input, stream in zip((1, 1, 2, None), (False, True, False, False), truth, strict=True):
            for expand in (False, True):
                parts, labels = cache.get_full_resid_decomposition(
                    layer, mlp_input=mlp_input, expand_neurons=expand, return_labels=True
                )
                raw.same(parts.sum(0)[real], stream)
                assert sum(label.endswith("_deepstack") for label in labels) == min(layer or 2, 2)
            raw.same(cache.decompose_resid(layer, mlp_input=mlp_input).sum(0)[real], stream)
        raw.same(cache.logit_attrs(cache.decompose_resid(), 7).sum(0)[real], logits[..., 7][real])
        scaled = cache.get_full_resid_decomposition(apply_ln=True).sum(0)
        raw.same(scaled[real], cache["ln_final.hook_out"][real])
        onto = torch.ones(model.cfg.d_model)
        raw.same(cache.get_full_resid_decomposition(project_output_onto=onto).sum(0)[real], truth[-1] @ onto)
        raw.same(cache.decompose_resid(pos_slice=-1).sum(0), cache["ln_final.hook_in"][:, -1])
        for mode in ("attn", "mlp"):
            _, labels = cache.decompose_resid(mode=mode, return_labels=True)
            assert not any(label.endswith("deepstack") for label in labels)
    single = model.run_with_cache(prompts["both"])[1]
    whole = single["ln_final.hook_in"][0]
    raw.same(single.remove_batch_dim().decompose_resid().sum(0), whole)
    _, text = model.run_with_cache(model.to_inputs("a red car"))
    parts, labels = text.decompose_resid(return_labels=True)
    assert "0_deepstack" not in labels
    raw.same(parts.sum(0), text["ln_final.hook_in"])


@QWEN3
@torch.no_grad()
def test_edits_of_deepstack_reach_the_stream_behind_its_block_only(model, plain, prompts):
    inputs, name = prompts["video"], "deepstack.1.hook_post"
    truth = raw.logits(plain, inputs, {name: lambda x: x * 0})
    edit = [(name, hooks.replace(0.0))]
    logits, cache = model.run_with_cache(inputs, "blocks.*.hook_resid_pre", fwd_hooks=edit)
    raw.same(logits, truth)
    raw.differs(truth, raw.logits(plain, inputs))
    _, before = model.run_with_cache(inputs, "blocks.*.hook_resid_pre")
    moved = [not torch.equal(cache[one], before[one]) for one in (f"blocks.{layer}.hook_resid_pre" for layer in range(3))]
    assert moved == [False, False, True]
    assert model.widths["deepstack"] == (96, 96)
    weight = plain.model.visual.deepstack_merger_list[1].linear_fc2.weight
    assert torch.equal(model.W_out(1, "deepstack"), weight.T)


# ---------------------------------------------------------------- where positions lie


def ramp(width, height, time=0.0):
    """Return a picture whose red says x, whose green says y and whose blue says when."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.round((np.arange(width) + 0.5) / width * 255)[None]
    pixels[..., 1] = np.round((np.arange(height) + 0.5) / height * 255)[:, None]
    pixels[..., 2] = round(time * 255)
    return Image.fromarray(pixels)


def colours(model, patches, merge=4):
    """Return the mean colour, 0 to 1, of the patches behind each position."""
    settings = model.processor.image_processor
    pixels = patches.numpy().reshape(len(patches) // merge, merge, 3, -1).transpose(2, 0, 1, 3)
    mean, std = (np.array(each)[:, None, None, None] for each in (settings.image_mean, settings.image_std))
    return (pixels * std + mean).mean((2, 3))


@QWEN
@pytest.mark.parametrize("size", [(50, 40), (40, 50), (24, 24), (120, 31), (31, 120), (20, 13), (9, 8)])
def test_what_lies_in_a_box_is_what_the_processor_showed_there(model, size):
    inputs = model.to_inputs("see", images=ramp(*size), videos=[[ramp(*size, time=step / 4) for step in range(5)]])
    grid, tiles = inputs.grids[0]
    for place, pixels in ((grid, "pixel_values"), (tiles, "pixel_values_videos")):
        seen = colours(model, inputs.tower[pixels])
        boxes = np.array([place.box(index) for index in range(len(place))])
        centres = np.stack([(boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2])
        assert np.abs(seen[:2] * np.array([[size[0]], [size[1]]]) - centres).max() < 0.25  # colours have 8 bits
    assert [own.frames for own in tiles.grids] == [(0, 2), (2, 4), (4, 5)]
    for number, when in enumerate([0.125, 0.625, 1.0]):  # two frames to a position; the last one is shown twice
        own = [index for index in range(len(tiles)) if tiles.tile(index)[0] == number]
        assert np.abs(seen[2, own] - when).max() < 0.01


@QWEN
def test_frames_of_a_video_are_groups_of_positions(model):
    inputs = model.to_inputs(["see", "a"], videos=[clip(0, 5), None], images=[None, picture(0)])
    frames = [inputs.mask(f"video:0/frame:{number}") for number in range(6)]
    assert torch.equal(frames[0], frames[1]) and torch.equal(frames[2], frames[3])
    assert torch.equal(frames[0] | frames[2] | frames[4], inputs.mask("video")) and not frames[5].any()
    assert sum(int(frame.sum()) for frame in frames[:5:2]) == len(inputs.grids[0][0]) == int(inputs.mask("video:0").sum())
    assert not inputs.mask("video")[1].any() and not inputs.mask("image")[0].any()
    positions = [frame[0].nonzero()[:, 0].tolist() for frame in frames[:5:2]]
    assert positions[0][-1] < positions[1][0] and positions[1][-1] < positions[2][0]


@QWEN
@torch.no_grad()
def test_a_video_of_one_frame_shows_it_twice_and_holds_it_once(model):
    frame = picture(0)
    one, two = model.to_inputs("see", videos=[[frame]]), model.to_inputs("see", videos=[[frame, frame]])
    assert torch.equal(one.tower["pixel_values_videos"], two.tower["pixel_values_videos"])
    assert [grid.frames for grid in one.grids[0][0].grids] == [(0, 1)]
    assert model(one).isfinite().all()


@QWEN
@torch.no_grad()
def test_a_position_of_the_stream_holds_the_patches_of_its_box(model):
    """With nothing passed between patches, a change inside one box reaches the stream at that position alone."""
    alone = [("vision.blocks.*.hook_attn_out", hooks.scale(0.0))]

    def stream(**media):
        inputs = model.to_inputs("see", **media)
        return inputs, model.run_with_cache(inputs, "blocks.0.hook_resid_pre", fwd_hooks=alone)[1][
            "blocks.0.hook_resid_pre"
        ][0]

    width = 8 * model.processor.image_processor.patch_size
    image = picture(0, width, width // 2)
    inputs, before = stream(images=image)
    grid, positions = inputs.grids[0][0], inputs.mask("image")[0].nonzero()[:, 0]
    assert (grid.rows, grid.columns) == (2, 4)
    for index in range(len(grid)):
        changed = image.copy()
        changed.paste((255, 0, 0), tuple(map(round, grid.box(index))))
        _, after = stream(images=changed)
        assert (after - before).abs().amax(-1).nonzero()[:, 0].tolist() == [positions[index]]
    frames = [picture(seed, width, width // 2) for seed in range(4)]
    inputs, before = stream(videos=frames)
    tiles, positions = inputs.grids[0][0], inputs.mask("video")[0].nonzero()[:, 0]
    for index, frame in ((3, 1), (4, 0), (9, 2), (14, 3)):
        changed = list(frames)
        changed[frame] = frames[frame].copy()
        changed[frame].paste((255, 0, 0), tuple(map(round, tiles.box(index))))
        _, after = stream(videos=changed)
        assert (after - before).abs().amax(-1).nonzero()[:, 0].tolist() == [positions[index]]
        assert inputs.mask(f"video:0/frame:{frame}")[0, positions[index]]


# ---------------------------------------------------------------- the processor


@QWEN
def test_inputs_are_what_transformers_own_processor_makes_of_them(model, folder):
    name = next(name for name in NAMES if name in str(folder))
    truths, level = recorded.arrays(name), 1 / 255 / min(model.processor.image_processor.image_std)
    compared = set()
    for case, text, images, videos, fps in recorded.cases(name):
        row = model.family.encode(
            model.processor, text, Media(tuple(images), tuple(Video(tuple(video), fps) for video in videos))
        )
        ours = {
            "input_ids": torch.tensor([row.tokens]),
            **{k: torch.tensor([v]) for k, v in row.stream.items()},
            **row.tower,
        }
        truth = truths[case]
        assert set(ours) == set(truth) - {"attention_mask"}
        for part, value in ours.items():
            if not part.startswith("pixel_values"):
                torch.testing.assert_close(value, truth[part], check_dtype=part == "input_ids")
            elif case in ("shrunk", "grown", "two", "frames grown", "many frames"):
                # torchvision and Pillow round between pixels differently: by a level of 255, by four at steep edges
                assert (value - truth[part]).abs().max() <= 4 * level and (value - truth[part]).abs().mean() < level / 10
            else:
                raw.same(value, truth[part], relative=1e-5)
            compared.add(part)
    assert {"pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw", "mm_token_type_ids"} <= compared


@QWEN
def test_a_folder_of_an_older_kind_gives_the_same_processor(model, folder, tmp_path):
    """Published folders have `preprocessor_config.json`, Qwen2's with `min_pixels`; Qwen3's has settings of videos too."""
    model.processor.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "processor_config.json").read_text())
    (tmp_path / "processor_config.json").unlink()
    settings = written["image_processor"]
    size = settings.pop("size")
    old = {**settings, "min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    old["processor_class"] = written["processor_class"]
    if "qwen3-vl" in str(folder):
        old = {**settings, "size": size, "image_processor_type": "Qwen2VLImageProcessorFast"}
        (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(written["video_processor"]))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": model.processor.chat_template}))
    processor = model.family.load_processor(pretrained_model_name_or_path=str(tmp_path), local_files_only=True)
    assert processor.chat_template == model.processor.chat_template
    media = Media((picture(0),), (Video(tuple(clip(1, 3))),))
    one, other = (model.family.encode(each, "see", media) for each in (processor, model.processor))
    assert one.tokens == other.tokens and one.stream == other.stream
    for part in one.tower:
        assert torch.equal(one.tower[part], other.tower[part])


@QWEN
def test_missing_placeholders_go_in_front_images_first(model):
    image, video = picture(0), clip(0, 2)
    ours = model.to_inputs("see", images=image, videos=video)
    start, end = "<|vision_start|>", "<|vision_end|>"
    written = f"{start}{model.processor.image_token}{end}{start}{model.processor.video_token}{end}see"
    assert model.to_inputs(written, images=image, videos=video).digest() == ours.digest()
    chat = model.to_inputs("see", images=image, videos=video, chat=True)
    assert [span.modality for span in chat.spans(0) if span.modality in ("image", "video")][:2] == ["image", "video"]
    with pytest.raises(ValueError, match=r"every <\|video_pad\|> .* 1 in"):
        model.to_inputs(written, images=image, videos=[video, video])


def test_frames_are_not_chosen_and_options_not_ignored(small_qwen):
    known = dict(total_num_frames=2, fps=2.0, frames_indices=[0, 1])
    for option in (dict(do_sample_frames=True), dict(size={"shortest_edge": 1, "longest_edge": 9})):
        with pytest.raises(ValueError, match=f"every frame .* {next(iter(option))}"):
            small_qwen.processor.video_processor([clip(0, 2)], video_metadata=[known], **option)


def test_frames_are_capped_where_the_settings_say_so():
    settings = {**FAMILIES["qwen2_vl"].load_processor.args[2], "max_video_tokens": 1000}
    small, whole = (
        FAMILIES["qwen2_vl"].load_processor.args[1](
            qwen_processor.Patches(lambda *_: (0, 0), **{**settings, "cap_pixels_per_frame": cap}), 10, 1000, 2000
        )
        for cap in (True, False)
    )
    # 0.9 of 1,000 positions of 28 x 28 pixels, two frames each, for ten frames
    assert whole == (532, 1092) and small == (252, 504) and small[0] * small[1] <= 0.9 * 1000 * 28 * 28 * 2 / 10


# ---------------------------------------------------------------- settings

PUBLISHED = {
    "qwen2_vl": dict(
        model_type="qwen2_vl",
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_window_layers=28,
        sliding_window=32768,
        use_sliding_window=False,
        rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]},
        vision_config=dict(depth=32, embed_dim=1280, hidden_size=3584, mlp_ratio=4, num_heads=16, patch_size=14),
    ),
    "qwen2_5_vl": dict(
        model_type="qwen2_5_vl",
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_window_layers=28,
        sliding_window=32768,
        use_sliding_window=False,
        rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]},
        vision_config=dict(
            depth=32,
            hidden_size=1280,
            out_hidden_size=3584,
            intermediate_size=3420,
            num_heads=16,
            patch_size=14,
            window_size=112,
            fullatt_block_indexes=[7, 15, 23, 31],
            tokens_per_second=2,
        ),
    ),
    "qwen3_vl": dict(
        model_type="qwen3_vl",
        tie_word_embeddings=True,
        text_config=dict(
            model_type="qwen3_vl_text",
            hidden_size=2560,
            intermediate_size=9728,
            num_hidden_layers=36,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            rope_theta=5000000,
            rope_scaling={"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        ),
        vision_config=dict(
            model_type="qwen3_vl",
            depth=24,
            hidden_size=1024,
            intermediate_size=4096,
            out_hidden_size=2560,
            num_position_embeddings=2304,
            deepstack_visual_indexes=[5, 11, 17],
        ),
    ),
}


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_the_settings_of_published_models_are_understood(model_type, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[model_type]))
    config = AutoConfig.from_pretrained(tmp_path)
    FAMILIES[model_type].check(config)
    for setting, value in (("vision_config.model_type", "clip_vision_model"), ("text_config.model_type", "llama")):
        other = copy.deepcopy(config)
        owner, _, name = setting.partition(".")
        object.__setattr__(getattr(other, owner), name, value)
        with pytest.raises(UnsupportedModel, match=setting):
            FAMILIES[model_type].check(other)


def test_a_transformers_that_can_not_run_the_tower_once_is_refused(small_qwen, monkeypatch):
    inputs = prompt(small_qwen, "both")
    monkeypatch.setattr(type(small_qwen.hf_model), "forward", lambda self, input_ids=None, **kwargs: None)
    with pytest.raises(UnsupportedModel, match="newer transformers"):
        small_qwen(inputs)


def test_sliding_windows_are_refused_by_name(tmp_path):
    config = copy.deepcopy(AutoConfig.from_pretrained(tiny("qwen2-vl", tmp_path)))
    config.text_config.use_sliding_window = True
    with pytest.raises(UnsupportedModel, match="use_sliding_window"):
        FAMILIES["qwen2_vl"].check(config)


def test_mixtures_of_experts_and_deepstack_that_is_not_understood_are_refused_by_name(tmp_path):
    with pytest.raises(UnsupportedModel, match="'qwen3_vl_moe'"):
        family_of(Qwen3VLMoeConfig().model_type)
    for levels in ([1, 0], [0, 0], [0, 1, 2]):
        config = copy.deepcopy(AutoConfig.from_pretrained(tiny("qwen3-vl", tmp_path)))
        config.vision_config.deepstack_visual_indexes = levels
        with pytest.raises(UnsupportedModel, match="deepstack_visual_indexes"):
            FAMILIES["qwen3_vl"].check(config)


@QWEN
@torch.no_grad()
def test_transformerlens_own_calls_run_pictures_and_videos_when_they_are_bound(model, prompts):
    for kind in KINDS:
        inputs = prompts[kind]
        real = inputs.mask("all")
        with model.bind(inputs) as bridge:
            logits, cache = bridge.run_with_cache(inputs.tokens, names_filter=["blocks.1.hook_resid_pre"])
        raw.same(logits[real], model(inputs)[real])
        _, ours = model.run_with_cache(inputs, "blocks.1.hook_resid_pre")
        raw.same(cache["blocks.1.hook_resid_pre"][real], ours["blocks.1.hook_resid_pre"][real])
