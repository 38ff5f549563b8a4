"""SmolVLM: what its processor does without torchvision, pictures and videos in one prompt, and where positions lie."""

import copy
import json

import numpy as np
import pytest
import raw
import recorded
import torch
from families.test_idefics3 import ramp
from PIL import Image
from support import clip, load, picture
from transformers import ProcessorMixin, SmolVLMConfig

from mmlens import Tiles
from mmlens.families import UnsupportedModel, smolvlm
from mmlens.inputs import Inputs
from mmlens.media import Media, Video, read_video
from mmlens.testing import tiny

RECORDED = recorded.arrays("smolvlm")


@pytest.fixture(scope="module")
def folder_of_smol(tmp_path_factory):
    return tiny("smolvlm", tmp_path_factory.mktemp("smolvlm"))


@pytest.fixture(scope="module")
def smol(folder_of_smol):
    return load(folder_of_smol)


@pytest.fixture
def processor(smol):
    return copy.deepcopy(smol.processor)


# ---------------------------------------------------------------- what transformers' own processor gives


@pytest.mark.parametrize("case", recorded.cases("smolvlm"), ids=lambda case: case[0])
def test_rows_equal_what_transformers_own_processor_gave_where_torchvision_was(smol, case):
    name, text, images, videos, fps = case
    truth = RECORDED[name]
    media = Media(tuple(images), tuple(Video(tuple(frames), fps) for frames in videos))
    inputs = Inputs.from_rows([smolvlm.encode(smol.processor, text, media)], pad=0)
    assert torch.equal(inputs.tokens, truth["input_ids"])
    assert set(inputs.tower) == {part for part in truth if part.startswith("pixel")}
    if not media.all():
        return
    counts = [len(frames) for frames in videos] or [truth["pixel_values"].shape[1]]
    for part, pixels in inputs.tower.items():  # transformers fills a shorter video up, and the model drops what is zero
        theirs = torch.cat([own[:count] for own, count in zip(truth[part], counts, strict=True)])[None]
        assert pixels.shape == theirs.shape
        # Pillow and torchvision round their resized pixels (of 256 levels) each in its own way: up to two levels apart
        whole = slice(0, -1) if name == "whole tiles" else slice(None)
        tolerance = 1e-5 if name.startswith("whole") else 2 * 2 / 255 + 1e-5
        torch.testing.assert_close(pixels[:, whole], theirs[:, whole], rtol=0, atol=tolerance)
    padding = truth["pixel_values"].flatten(2).abs().sum(-1) == 0
    assert int((~padding).sum()) == inputs.tower["pixel_values"].shape[1]


def test_a_video_is_told_with_its_length_and_the_time_of_each_frame(processor):
    """The tokens that are recorded say the same; this is to be read."""
    seen = []
    tokenizer, processor.tokenizer = processor.tokenizer, copy.copy(processor.tokenizer)
    processor.get_text_with_replacements = lambda *args: (
        seen.extend((made := type(processor).get_text_with_replacements(processor, *args))[0]) or made
    )
    smolvlm.encode(processor, "what ?", Media(videos=(Video(tuple(clip(0, 3)), 0.02),)))
    frame = "<fake_token_around_image><global-img>" + "<image>" * 4 + "<fake_token_around_image>"
    assert seen == [
        "You are provided the following series of three frames from a 0:01:40 [H:MM:SS] video.\n"
        f"\nFrame from 00:00:{frame}\nFrame from 00:50:{frame}\nFrame from 01:40:{frame}\n\nwhat ?"
    ]
    assert tokenizer.convert_tokens_to_ids("three") != tokenizer.unk_token_id


def test_a_video_without_a_rate_of_its_own_has_the_processors(processor):
    video = read_video(clip(0, 3))
    assert video.fps is None and smolvlm._metadata(processor, video)["fps"] == 1
    processor.video_processor.settings["fps"] = None
    assert smolvlm._metadata(processor, video)["fps"] == 24


# ---------------------------------------------------------------- pictures and videos


def test_pictures_and_videos_of_a_prompt_enter_in_the_order_of_the_text(smol):
    one, two, film = picture(0), picture(1, 120, 30), clip(3, 3)
    inputs = smol.to_inputs("the <image> and <video> and <image>", images=[one, two], videos=[film])
    spans = [(span.modality, span.medium) for span in inputs.spans(0) if span.medium is not None]
    assert list(dict.fromkeys(spans)) == [("image", 0), ("video", 2), ("image", 1)]
    parts = [smol.to_inputs("see", images=one), smol.to_inputs("see", videos=[film]), smol.to_inputs("see", images=two)]
    alone = torch.cat([part.tower["pixel_values"] for part in parts], dim=1)
    assert torch.equal(inputs.tower["pixel_values"], alone)
    assert [len(place.grids) for place in inputs.grids[0]] == [5, 3, 3]
    assert inputs.media[0][2].frames == tuple(film)
    for frame in range(3):
        assert inputs.mask(f"video:0/frame:{frame}").sum() == 4
    assert not inputs.mask("video:0/frame:3").any() and inputs.mask("image:1").sum() == 12


@torch.no_grad()
def test_rows_of_pictures_of_videos_and_of_text_are_in_a_batch_what_they_are_alone(smol):
    rows = [("the red car", picture(0), None), ("a tree", None, None), ("see", None, [clip(3, 2), clip(4, 3)])]
    rows.append(("<video> and <image>", picture(1), [clip(5, 1)]))
    texts, images, videos = (list(column) for column in zip(*rows, strict=True))
    inputs = smol.to_inputs(texts, images=images, videos=videos)
    together = smol(inputs)
    for row, (text, image, films) in enumerate(rows):
        alone = smol(smol.to_inputs(text, images=image, videos=films))[0]
        raw.same(together[row][-len(alone) :], alone)


@pytest.mark.parametrize("folder", ["smolvlm"], indirect=True)
@torch.no_grad()
def test_logits_and_answers_to_a_video_equal_transformers_own(model, plain):
    inputs = model.to_inputs(["what is in it ?", "a", "the <video> and <image>"], **both())
    raw.same(model(inputs), raw.logits(plain, inputs))
    truth = raw.generate(plain, inputs, max_new_tokens=4, pad_token_id=model.tokenizer.pad_token_id)
    assert torch.equal(model.generate(inputs, max_new_tokens=4).tokens, truth)
    _, cache = model.run_with_cache(inputs, ["blocks.0.hook_resid_pre", "projector.hook_out"])
    where = inputs.mask("image", "video")
    raw.same(cache["blocks.0.hook_resid_pre"][where], cache["projector.hook_out"].flatten(0, 1))


def both():
    return dict(videos=[[clip(0, 3)], None, [clip(1, 2)]], images=[None, None, picture(0)])


@torch.no_grad()
def test_a_frame_that_is_painted_changes_its_own_pixels_only(smol):
    film = clip(0, 3)
    painted = [*film[:1], Image.new("RGB", film[0].size, "red"), *film[2:]]
    before, after = (smol.to_inputs("see", videos=[frames]).tower["pixel_values"][0] for frames in (film, painted))
    assert [bool((one != other).any()) for one, other in zip(before, after, strict=True)] == [False, True, False]


@pytest.mark.parametrize("size", [(50, 40), (31, 120), (24, 24), (20, 13)])
def test_what_lies_in_a_box_of_a_frame_is_what_the_processor_showed_there(processor, size):
    processor.image_processor.max_image_size = processor.video_processor.settings["max_image_size"] = {"longest_edge": 26}
    row = smolvlm.encode(processor, "see", Media(videos=(Video((picture(0, *size), ramp(*size))),)))
    place, tile = row.grids[0], row.tower["pixel_values"][0, 1].numpy()
    assert isinstance(place, Tiles) and [grid.frames for grid in place.grids] == [(0, 1), (1, 2)]
    colours = ((tile[:2, :24, :24] + 1) / 2).reshape(2, 2, 12, 2, 12).mean((2, 4)).reshape(2, -1)
    boxes = np.array([place.grids[1].box(index) for index in range(4)])
    centres = np.stack([(boxes[:, 0] + boxes[:, 2]) / 2 / size[0], (boxes[:, 1] + boxes[:, 3]) / 2 / size[1]])
    assert np.abs(colours - centres).max() < 0.02  # of the picture; small frames are smoothed at their edges
    assert row.modality.count("video") == len(place) == 8


def test_a_video_in_a_chat_has_transformers_own_template_for_videos(smol):
    content = [{"type": "video"}, {"type": "text", "text": "what ?"}]
    text = smol.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert text == "<|im_start|>User: <video>what ?<end_of_utterance>\nAssistant:"
    inputs = smol.to_inputs("what ?", videos=[clip(0)], chat=True)
    assert torch.equal(inputs.tokens, smol.to_inputs(text, videos=[clip(0)]).tokens)


# ---------------------------------------------------------------- files and settings


def test_published_files_are_read_as_transformers_reads_them(smol, processor, tmp_path):
    """Those of the hub keep the video's settings beside the picture's, in a file of the old form."""
    processor.save_pretrained(tmp_path)
    written, _ = ProcessorMixin.get_processor_dict(tmp_path)
    assert written["processor_class"] == "SmolVLMProcessor" and "video_processor" in written
    old = {
        **written["image_processor"],
        "processor_class": "SmolVLMProcessor",
        "video_sampling": {"fps": 2, "max_frames": 64, "video_size": {"longest_edge": 96}},
    }
    (tmp_path / "processor_config.json").write_text('{"processor_class": "SmolVLMProcessor", "image_seq_len": 4}')
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    read = smolvlm.load_processor(tmp_path, local_files_only=True)
    frames = read.video_processor
    assert (read.image_seq_len, frames.fps, frames.num_frames) == (4, 2, 64)
    assert dict(frames.size) == dict(old["size"]) and dict(frames.max_image_size) == {"longest_edge": 24}
    assert smolvlm.Pictures(video_sampling=old["video_sampling"]).size == {"longest_edge": 96}
    assert read.chat_template == smol.processor.chat_template
    with pytest.raises(AttributeError, match="no setting 'crop'"):
        _ = frames.crop


@pytest.mark.parametrize(
    ("edge", "patch", "scale", "positions"), [(512, 16, 4, 64), (384, 14, 3, 81)], ids=["256M and 500M", "2.2B"]
)
def test_the_published_checkpoints_settings_are_understood(processor, edge, patch, scale, positions):
    config = SmolVLMConfig(
        vision_config={"model_type": "smolvlm_vision", "image_size": edge, "patch_size": patch},
        text_config={"model_type": "llama"},
        scale_factor=scale,
    )
    tile = {"longest_edge": edge}
    processor.image_processor.size, processor.image_processor.max_image_size = {"longest_edge": 4 * edge}, tile
    processor.video_processor = smolvlm.Pictures(
        max_image_size=tile, video_sampling=dict(fps=1, max_frames=64, video_size=tile)
    )
    processor.image_seq_len = positions
    smolvlm.FAMILY.check(config)
    smolvlm.settle(processor, config)
    row = smolvlm.encode(processor, "see", Media(videos=(Video(tuple(clip(0, 2))),)))
    assert row.modality.count("video") == 2 * positions


@pytest.mark.parametrize(
    ("name", "value"), [("do_resize", False), ("max_image_size", {"longest_edge": 30})], ids=lambda value: str(value)
)
def test_frames_of_another_size_than_tiles_are_refused_by_name(smol, processor, name, value):
    processor.video_processor.settings[name] = value
    with pytest.raises(UnsupportedModel, match=name):
        smolvlm.settle(processor, smol.hf_model.config)
