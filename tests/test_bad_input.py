"""What can not be right is refused, in words of ours: the rule, what was got, and what to do instead."""

import json
import shutil
import zlib
from types import SimpleNamespace

import jaxtyping
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from support import ask, leaves_no_hooks, load, picture, sound
from transformers import BertConfig

from mmlens import HookedMLLM, Neurons, hooks
from mmlens.families import UnsupportedModel
from mmlens.liveness import InertHook, UnknownHook
from mmlens.neurons import top_k
from mmlens.testing import tiny

POST, RESID, PATTERN = "blocks.1.mlp.hook_post", "blocks.1.hook_resid_post", "blocks.1.attn.hook_pattern"
WIDTHS = {"language": (48, 48, 48), "vision": (40, 40, 40)}
PIXELS = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
WAVES = sound(0)[0]


@pytest.fixture(scope="module")
def heard(tmp_path_factory):
    return load(tiny("qwen2-audio", tmp_path_factory.mktemp("heard")))


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    return load(tiny("qwen2-vl", tmp_path_factory.mktemp("shown")))


@pytest.fixture
def at(small, small_folder, heard, shown, tmp_path):
    """A model that sees, one that hears, one that is shown videos, inputs of the first, and places for files."""
    return SimpleNamespace(
        sees=small, hears=heard, shows=shown, inputs=ask(small, "one"), folder=tmp_path, whole=small_folder
    )


def table(cases):
    return pytest.mark.parametrize(("do", "error", "says"), [pytest.param(*case, id=name) for name, *case in cases])


@pytest.fixture(autouse=True)
def as_users_run_it(monkeypatch):
    """Take off the checks of types that only the tests have; no network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def refused(at, do, error, says):
    with leaves_no_hooks(at.sees), leaves_no_hooks(at.hears), pytest.raises(error) as caught:
        do(at)
    assert type(caught.value) is error, f"{caught.value!r} is not ours"
    missing = [words for words in says if words not in str(caught.value)]
    assert not missing, f"{caught.value} does not say {missing}"


# ---------------------------------------------------------------- text and media

TOKEN = "<image>"


def bomb(at):
    """Return a PNG of a hundred bytes that says it is 60,000 x 60,000."""

    def chunk(name, data):
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    parts = [(b"IHDR", (60_000).to_bytes(4, "big") * 2 + b"\x08\2\0\0\0"), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    (at.folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    return at.folder / "bomb.png"


def half(at):
    picture(0).save(at.folder / "whole.png")
    (at.folder / "half.png").write_bytes((at.folder / "whole.png").read_bytes()[:900])
    return at.folder / "half.png"


def words(at):
    (at.folder / "words.png").write_text("no picture")
    return at.folder / "words.png"


def see(images, text="see"):
    return lambda at: at.sees.to_inputs(text, images=images(at) if callable(images) else images)


def hear(audio, text="hear"):
    return lambda at: at.hears.to_inputs(text, audio=audio)


def show(videos, text="see"):
    return lambda at: at.shows.to_inputs(text, videos=videos)


@table(
    [
        ("a placeholder without its image", see(None, TOKEN), ValueError, [TOKEN, "got 1 in", "0 image", "Pass as many"]),
        ("more images than placeholders", see([PIXELS] * 2, TOKEN), ValueError, ["got 1 in", "2 image", "leave the placeh"]),
        ("fewer images than placeholders", see(PIXELS, TOKEN * 3), ValueError, ["got 3 in", "1 image", "Pass as many"]),
        ("a placeholder without its sound", hear(None, "<|AUDIO|>"), ValueError, ["<|AUDIO|>", "got 1 in", "0 sound"]),
        ("more sounds than placeholders", hear([WAVES] * 2, "<|AUDIO|> a"), ValueError, ["got 1 in", "2 sound", "Pass as"]),
        (
            "a sound for a model that sees",
            lambda at: at.sees.to_inputs("a", audio=WAVES),
            ValueError,
            ["llava model takes image", "got audio", "leave it out"],
        ),
        (
            "an image for a model that hears",
            lambda at: at.hears.to_inputs("a", images=PIXELS),
            ValueError,
            ["qwen2_audio model takes audio", "got image", "leave it out"],
        ),
        (
            "a video for a model of images",
            lambda at: at.sees.to_inputs("a", videos=[PIXELS] * 2),
            ValueError,
            ["takes image", "got video", "leave it out"],
        ),
        (
            "another sampling rate",
            hear((WAVES, 44_100)),
            ValueError,
            ["16000", "44100", "resample_poly(samples, 16000, 44100)"],
        ),
        ("the rate before the samples", hear((16_000, WAVES)), ValueError, ["(samples, rate)", "(rate, samples)", "swap"]),
        ("a sound longer than the window", hear(np.zeros(20_000)), ValueError, ["at most 1 s", "20000 samples", "cut it"]),
        ("a sound too short to be heard", hear(np.zeros(300)), ValueError, ["at least 321", "of 300", "longer"]),
        ("samples of sixteen bits", hear(np.zeros(999, dtype=np.int16)), ValueError, ["fractions", "int16", "/ 32768"]),
        ("a sound with NaN", hear(np.full(999, np.nan)), ValueError, ["finite", "got 999", "look at"]),
        (
            "a placeholder without its video",
            show(None, "<|video_pad|>"),
            ValueError,
            ["<|video_pad|>", "got 1 in", "0 video"],
        ),
        ("a video without frames", show([]), ValueError, ["at least one frame", "got none", "give the frames"]),
        ("frames of two sizes", show([PIXELS, PIXELS[:9]]), ValueError, ["one size", "(40, 9), (40, 30)", "resize"]),
        ("a rate of no frames", show(([PIXELS] * 2, 0)), ValueError, ["frames a second, above 0", "got 0", "(frames, fps)"]),
        ("a picture in place of a video", show(PIXELS), ValueError, ["[frame, height, width, channel]", "images= for one"]),
        ("an empty text", see(None, ""), ValueError, ["text or media", "an empty text", "leave that row out"]),
        ("a text of spaces among others", see(None, ["a", " \n"]), ValueError, ["text or media", "an empty text"]),
        ("no text at all", see(None, []), ValueError, ["at least one row", "got none", "pass a text"]),
        ("None as text", see(None, None), TypeError, ["a string or a list of strings", "got a NoneType"]),
        ("a number as text", see(None, 5), TypeError, ["a string or a list of strings", "got a int"]),
        ("a list with a number in it", see(None, ["a", 5]), TypeError, ["a string or a list of strings", "got a int"]),
        ("bytes as text", see(None, b"see"), TypeError, ["got a bytes", "decoded first"]),
        ("tokens as text", see(None, torch.tensor([1, 2])), TypeError, ["got a Tensor", "decoded first"]),
        (
            "fewer answers than texts",
            lambda at: at.sees.to_inputs(["a", "the"], answer=["red"]),
            ValueError,
            ["one answer per text", "2 text(s) and 1 answer(s)", "one for all"],
        ),
        (
            "a number as answer",
            lambda at: at.sees.to_inputs("a", answer=5),
            TypeError,
            ["answer is a string or a list of strings", "got a int"],
        ),
        ("one image for two texts", see(PIXELS, ["a", "the"]), ValueError, ["with 2 texts", "one entry", "got one image"]),
        ("three images for two texts", see([PIXELS] * 3, ["a", "the"]), ValueError, ["with 2 texts", "got 3 entries"]),
        ("a file that is no image", see(words), ValueError, ["not a picture", "words.png", "give a PNG"]),
        ("a damaged image", see(half), ValueError, ["half.png", "damaged", "save it again"]),
        ("an image as large as a bomb", see(bomb), ValueError, ["bomb.png", "too large", "3600000000"]),
        ("an address as image", see("https://a.org/b.png"), ValueError, ["a file", "https://a.org/b.png", "download"]),
        ("a folder as image", see(lambda at: at.folder), FileNotFoundError, ["no picture at", "a folder", "give a file"]),
        ("a file that is not there", see("gone.png"), FileNotFoundError, ["no picture at gone.png", "look at the path"]),
        ("a tensor as image", see(torch.zeros(3, 8, 8)), TypeError, ["PIL image, an array", "got a Tensor", ".numpy()"]),
        ("an image with NaN", see(PIXELS / np.nan), ValueError, ["finite", "got 3600", "look at"]),
        ("pixels out of range", see(PIXELS * 2.0), ValueError, ["0 to 255", "got numbers from 0 to 5", "scale"]),
        ("pixels of another type", see(PIXELS.astype(np.int32)), ValueError, ["uint8", "int32", ".astype(np.uint8)"]),
        ("channels first", see(PIXELS.transpose(2, 0, 1)), ValueError, ["[3, 30, 40]", "transpose(1, 2, 0)"]),
        ("several images as one array", see(PIXELS[None]), ValueError, ["[1, 30, 40, 3]", "give one picture"]),
        ("an image without pixels", see(PIXELS[:0]), ValueError, ["[0, 40, 3]", "give one picture"]),
        ("a PIL image without pixels", see(Image.new("RGB", (0, 3))), ValueError, ["pixels", "0 x 3", "give another"]),
        (
            "chat without a template",
            lambda at: plainly(at).to_inputs("a", chat=True),
            ValueError,
            ["chat template", "leave"],
        ),
        ("a prompt beyond the context", see(None, "a " * 4100), ValueError, ["at most 4096 positions", "4101", "shorten"]),
    ]
)
def test_text_and_media(at, do, error, says):
    refused(at, do, error, says)


def plainly(at):
    """Return the model without its chat template."""
    model = load(at.whole)
    model.processor.chat_template = None
    return model


# ---------------------------------------------------------------- positions


def masked(make, name=RESID):
    return lambda at: at.sees.run_with_hooks(at.inputs, fwd_hooks=[(name, hooks.replace(0.0, where=make(at)))])


def knocked(queries, keys):
    return lambda at: at.sees.run_with_hooks(at.inputs, fwd_hooks=hooks.knock_out(queries(at), keys(at)))


@table(
    [
        ("a group that is none", lambda at: at.inputs.mask("images"), KeyError, ["one of text, special", "'images'"]),
        (
            "a part that is none",
            lambda at: at.inputs.mask("image:0/row:1"),
            KeyError,
            ["a part of it such as", "image:0/row:1"],
        ),
        ("a medium that no row has", lambda at: at.inputs.mask("image:1"), KeyError, ["no row holds image:1", "from 0"]),
        (
            "a mask of other inputs",
            masked(lambda at: ask(at.sees, "text").mask("all")),
            ValueError,
            [RESID, "[batch, pos] =", "make it from the inputs of this run"],
        ),
        (
            "a mask of numbers",
            masked(lambda at: at.inputs.attention_mask),
            ValueError,
            [RESID, "the mask is torch.int64", "inputs.mask('image')"],
        ),
        (
            "a mask of one row",
            masked(lambda at: at.inputs.mask("all")[0]),
            ValueError,
            ["[batch, pos] =", "make it from the"],
        ),
        (
            "keys of other inputs",
            knocked(lambda at: at.inputs.last(), lambda at: ask(at.sees, "text").mask("all")),
            ValueError,
            ["keys are a mask", "make it from the inputs of this run"],
        ),
        (
            "keys that are numbers",
            knocked(lambda at: at.inputs.last(), lambda at: at.inputs.attention_mask),
            ValueError,
            ["keys are a mask", "of booleans", "torch.int64"],
        ),
        (
            "a query with nothing left to see",
            knocked(lambda at: at.inputs.last(), lambda at: at.inputs.mask("all")),
            ValueError,
            ["nothing left to attend to", "leave it at least one"],
        ),
        (
            "a mask where beams multiply the rows",
            lambda at: at.sees.generate(
                at.inputs, num_beams=2, fwd_hooks=[(RESID, hooks.replace(0.0, where=at.inputs.mask("image")))]
            ),
            ValueError,
            [RESID, "make it from the inputs of this run", "beams", "generate without them"],
        ),
    ]
)
def test_positions(at, do, error, says):
    refused(at, do, error, says)


# ---------------------------------------------------------------- hooks and runs


def edited(change, name=RESID):
    return lambda at: at.sees.run_with_hooks(at.inputs, fwd_hooks=[(name, lambda x, hook: change(x))])


def chosen(**which):
    name = which.pop("name", POST)
    return lambda at: at.sees.run_with_hooks(at.inputs, fwd_hooks=[(name, hooks.replace(0.0, **which))])


@table(
    [
        (
            "a hook that returns a number",
            edited(lambda x: 0.0),
            TypeError,
            [RESID, "returned a float", "None where it only"],
        ),
        (
            "a hook that returns an array",
            edited(lambda x: x.detach().numpy()),
            TypeError,
            ["a tensor", "returned a ndarray"],
        ),
        (
            "a hook that returns another shape",
            edited(lambda x: x[:, :1]),
            ValueError,
            ["keeps the shape", "[1, 1, 32]", "clone"],
        ),
        (
            "a hook that returns another dtype",
            edited(lambda x: x.double()),
            ValueError,
            ["torch.float64", ".to(activation)"],
        ),
        ("a hook that returns NaN", edited(lambda x: x * np.nan), ValueError, [RESID, "finite", "at [0, 0, 0]", "look at"]),
        ("a hook that returns infinity", edited(lambda x: x / 0), ValueError, ["that are NaN or infinite", "look at"]),
        ("NaN in scores", edited(lambda x: x * np.nan, PATTERN.replace("pattern", "attn_scores")), ValueError, ["finite"]),
        (
            "a hook that is no function",
            lambda at: at.sees.run_with_hooks(at.inputs, fwd_hooks=[(RESID, 0.0)]),
            TypeError,
            ["a pair (name, function)", "a float", "give a function"],
        ),
        (
            "a point that is none",
            edited(lambda x: x, "blocks.1.mlp.hook_pots"),
            UnknownHook,
            ["nearest", POST, "hook_names"],
        ),
        ("a layer that is none", edited(lambda x: x, "blocks.9.mlp.hook_post"), UnknownHook, ["'blocks.9", "hook_names"]),
        ("a tower that is none", edited(lambda x: x, "audio.blocks.0.hook_resid_pre"), UnknownHook, ["'audio.", "nearest"]),
        ("a glob that matches nothing", edited(lambda x: x, "blocks.*.hook_x"), UnknownHook, ["'blocks.*.hook_x'"]),
        (
            "a glob that matches nothing to cache",
            lambda at: at.sees.run_with_cache(at.inputs, "audio.*"),
            UnknownHook,
            ["no hook point 'audio.*'", "hook_names lists them"],
        ),
        ("a point that never fires", edited(lambda x: x, "blocks.0.attn.hook_result"), InertHook, ["never fires", "hook_z"]),
        (
            "an edit where it is too late",
            edited(lambda x: x * 2, "vision.blocks.2.hook_resid_post"),
            InertHook,
            ["can be read but not edited", "edit projector.hook_in instead"],
        ),
        (
            "a gradient at half of a stream",
            lambda at: at.sees.run_with_hooks(at.inputs, bwd_hooks=[("blocks.1.hook_resid_mid", lambda g, hook: None)]),
            InertHook,
            ["would miss the skip path", "hook_attn_out"],
        ),
        ("a unit out of range", chosen(units=[3, 48]), IndexError, [POST, "units 0 to 47", "got 48", "choose"]),
        ("a negative unit", chosen(units=[-1]), IndexError, ["units 0 to 47", "got -1"]),
        ("a head out of range", chosen(heads=[4], name=PATTERN), IndexError, [PATTERN, "heads 0 to 3", "got 4"]),
        ("heads of what has none", chosen(heads=[0]), ValueError, [POST, "no head axis", "leave `heads` out"]),
        (
            "heads and units at once",
            chosen(heads=[0], units=[0], name="blocks.1.attn.hook_z"),
            ValueError,
            ["heads or units", "got both", "two hooks"],
        ),
        (
            "heads out of range to knock out",
            lambda at: at.sees.run_with_hooks(
                at.inputs, fwd_hooks=hooks.knock_out(at.inputs.last(), at.inputs.mask("image"), heads=[7])
            ),
            IndexError,
            ["heads 0 to 3", "got 7"],
        ),
        ("a text in place of inputs", lambda at: at.sees("see"), TypeError, ["reads Inputs", "got a str", "to_inputs"]),
        (
            "tokens in place of inputs",
            lambda at: at.sees.generate(at.inputs.tokens),
            TypeError,
            ["reads Inputs", "a Tensor"],
        ),
        (
            "no new tokens",
            lambda at: at.sees.generate(at.inputs, max_new_tokens=0),
            ValueError,
            ["at least one token", "max_new_tokens = 0", "1 or more"],
        ),
        (
            "less than no new tokens",
            lambda at: at.sees.generate(at.inputs, max_new_tokens=-3),
            ValueError,
            ["at least one token", "= -3"],
        ),
        ("a word without a token", lambda at: at.sees.to_token("zyzzyva"), ValueError, ["'zyzzyva' has no token"]),
    ]
)
def test_hooks_and_runs(at, do, error, says):
    refused(at, do, error, says)


# ---------------------------------------------------------------- neurons


def neurons(*members):
    return lambda at: Neurons.of(members, WIDTHS)


@table(
    [
        ("a unit that does not exist", neurons((1, 48)), ValueError, ["L1.u48 does not exist", "48 units", "choose"]),
        ("a layer that does not exist", neurons((3, 0)), ValueError, ["L3.u0 does not exist", "3 layers", "choose"]),
        ("a module that does not exist", neurons(("audio", 0, 0)), ValueError, ["['language', 'vision']", "got 'audio'"]),
        (
            "a neuron given twice",
            neurons((1, 2), (1, 2)),
            ValueError,
            ["holds a neuron once", "L1.u2 twice", "leave one out"],
        ),
        (
            "fewer than none of the best",
            lambda at: top_k(torch.zeros(3, 48), -1, widths=WIDTHS),
            ValueError,
            ["has 144 neurons", "got k = -1", "from 0 to all"],
        ),
        (
            "more than all of the best",
            lambda at: top_k(torch.zeros(3, 48), 145, widths=WIDTHS),
            ValueError,
            ["has 144 neurons", "got k = 145"],
        ),
        (
            "the best by NaN",
            lambda at: top_k(torch.full((3, 48), torch.nan), 1, widths=WIDTHS),
            ValueError,
            ["got NaN", "look at the activations"],
        ),
        (
            "the best of another module",
            lambda at: top_k(torch.zeros(3, 48), 1, widths=WIDTHS, module="audio"),
            ValueError,
            ["['language', 'vision']", "got 'audio'", "choose"],
        ),
        (
            "scores of another shape",
            lambda at: top_k(torch.zeros(2, 48), 1, widths=WIDTHS),
            ValueError,
            ["[3, 48] (layer, unit)", "got [2, 48]"],
        ),
        (
            "a value for each of other neurons",
            lambda at: hooks.ablate(Neurons.of([(0, 1), (0, 2)], WIDTHS), value=torch.zeros(3)),
            ValueError,
            ["one value per neuron", "2 neurons", "[3]"],
        ),
        (
            "positions of the stream for a tower's neurons",
            lambda at: hooks.ablate(Neurons.of([("vision", 0, 1)], WIDTHS), where=at.inputs.mask("image")),
            ValueError,
            ["the language model's positions", "['vision']", "without `where`"],
        ),
        ("weights of a layer that is none", lambda at: at.sees.W_out(9), KeyError, ["no neurons in layer 9", "'language'"]),
    ]
)
def test_neurons(at, do, error, says):
    refused(at, do, error, says)


# ---------------------------------------------------------------- models


def told(**settings):
    """Return what loads a copy of the folder whose config.json says something else."""

    def do(at):
        folder = shutil.copytree(at.whole, at.folder / "told")
        config = json.loads((folder / "config.json").read_text())
        for name, value in settings.items():
            owner = config
            *owners, name = name.split("__")
            for part in owners:
                owner = owner[part]
            owner[name] = value
        (folder / "config.json").write_text(json.dumps(config))
        HookedMLLM.from_pretrained(folder, device="cpu")

    return do


def copied(change):
    """Return what loads a copy of the folder that `change` has had its way with."""

    def do(at):
        folder = shutil.copytree(at.whole, at.folder / "copy")
        change(folder)
        HookedMLLM.from_pretrained(folder, device="cpu")

    return do


def named(name):
    return lambda at: HookedMLLM.from_pretrained(name, device="cpu")


def other_architecture(at):
    BertConfig().save_pretrained(at.folder)
    HookedMLLM.from_pretrained(at.folder)


def cut(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def pickled(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(2)}, folder / "pytorch_model.bin")


@table(
    [
        ("another architecture", other_architecture, UnsupportedModel, ["model types", "llava", "this model is a 'bert'"]),
        (
            "code of the repository's own",
            told(model_type="mplug_owl2"),
            UnsupportedModel,
            ["'mplug_owl2'", "not in transformers", "would need"],
        ),
        ("an unknown setting", told(vision_feature_select_strategy="cls"), UnsupportedModel, ["select_strategy", "got cls"]),
        ("an unknown tower", told(vision_config__model_type="vit"), UnsupportedModel, ["vision_config.model_type", "'vit'"]),
        (
            "a folder that is not there",
            named("/no/such/model"),
            FileNotFoundError,
            ["no model folder at /no", "a folder, or"],
        ),
        ("an id that is none", named("a/b/c"), FileNotFoundError, ["no hub id", "a folder, or an id such as"]),
        ("an id with a space", named("user/my model"), FileNotFoundError, ["no hub id", "a folder, or an id such as"]),
        (
            "an id that is nowhere",
            named("no/such-model"),
            FileNotFoundError,
            ["no/such-model", "not in the cache", "hf download"],
        ),
        ("a word that is no id", named("llava"), FileNotFoundError, ["no hub id", "pictoworld", "an id such as"]),
        (
            "a folder without config",
            copied(lambda folder: (folder / "config.json").unlink()),
            FileNotFoundError,
            ["holds a config.json", "copy does not"],
        ),
        (
            "a folder without weights",
            copied(lambda folder: (folder / "model.safetensors").unlink()),
            FileNotFoundError,
            ["weights", "copy", "model.safetensors"],
        ),
        ("weights that are cut off", copied(cut), ValueError, ["weights", "copy", "damaged", "again"]),
        ("weights that are pickled", copied(pickled), UnsupportedModel, ["safetensors", ".bin", "allow_bin=True"]),
        (
            "a config that is no JSON",
            copied(lambda folder: (folder / "config.json").write_text("{")),
            ValueError,
            ["config.json", "copy", "JSON"],
        ),
    ]
)
def test_models(at, do, error, says):
    refused(at, do, error, says)
