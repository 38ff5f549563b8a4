"""However a model is loaded, it computes the same, and its weights are the same numbers wherever they are read."""

import json
import shutil
import socket
import time

import numpy as np
import pytest
import raw
import torch
from accelerate import cpu_offload, disk_offload
from support import ask, leaves_no_hooks
from torch import nn
from transformers import AutoProcessor, LlavaForConditionalGeneration
from transformers.pytorch_utils import Conv1D

from mmlens import HookedMLLM, Neurons, hooks
from mmlens.analysis import (
    activation_patching,
    attribution_patching,
    decode,
    direct_logit_attribution,
    grad_x_activation,
    logit_lens,
    nearest_tokens,
    residual,
)
from mmlens.families import UnsupportedModel
from mmlens.testing import tiny
from mmlens.weights import UnreadableWeight, device_of, is_offloaded, output_rows, readable, units, weight_of

# ---------------------------------------------------------------- offloaded weights

EVERYTHING_ON_DISK = {
    "model.vision_tower": "cpu",
    "model.multi_modal_projector": "disk",
    "model.language_model": "disk",
    "lm_head": "disk",
}


@pytest.fixture(scope="module", params=["device_map", "in memory", "on disk"])
def away(request, small_folder, tmp_path_factory):
    """The tiny model with its weights off the device that computes: by transformers' device_map, or by Accelerate."""
    folder = tmp_path_factory.mktemp("offload")
    if request.param == "device_map":
        return HookedMLLM.from_pretrained(small_folder, device_map=EVERYTHING_ON_DISK, offload_folder=folder)
    plain = LlavaForConditionalGeneration.from_pretrained(small_folder).eval()
    if request.param == "in memory":
        cpu_offload(plain, "cpu")
    else:
        disk_offload(plain, str(folder), "cpu")
    return HookedMLLM(plain, AutoProcessor.from_pretrained(small_folder), name=str(small_folder))


def test_offloaded_weights_are_really_away_and_inputs_go_where_the_model_computes(away, small):
    down = away.hf_model.model.language_model.layers[1].mlp.down_proj
    assert down.weight.is_meta and is_offloaded(away.hf_model) and not is_offloaded(small.hf_model)
    assert away.device == small.device == ask(away, "one").tokens.device


@torch.no_grad()
def test_an_offloaded_model_says_reads_and_writes_what_the_one_in_memory_does(away, small):
    inputs = ask(small, "mixed")
    names = ["*hook_resid_post", "*.mlp.hook_post", "*.hook_pattern", "projector.*"]
    (logits, cache), (truth, expected) = away.run_with_cache(inputs, names), small.run_with_cache(inputs, names)
    raw.same(logits, truth, relative=0)
    for name in expected.keys():  # noqa: SIM118 (no dict)
        raw.same(cache[name], expected[name], relative=0)
    edits = [
        ("vision.blocks.0.mlp.hook_post", hooks.scale(0.0)),
        ("blocks.1.attn.hook_pattern", hooks.scale(0.5)),
        ("blocks.1.hook_resid_mid", hooks.add(0.3)),
    ]
    with leaves_no_hooks(away):
        edited = away.run_with_hooks(inputs, fwd_hooks=edits)
    raw.same(edited, small.run_with_hooks(inputs, fwd_hooks=edits), relative=0)
    raw.differs(edited, truth)
    assert torch.equal(away.generate(inputs).tokens, small.generate(inputs).tokens)


def test_an_offloaded_models_gradients_are_those_of_the_one_in_memory(away, small):
    inputs, gradients = ask(small, "mixed"), []
    for model in (away, small):
        hook = ("vision.blocks.0.mlp.hook_post", lambda gradient, hook: gradients.append(gradient.clone()))
        model.run_with_hooks(inputs, bwd_hooks=[hook])[:, -1].square().sum().backward()
    raw.same(*gradients, relative=0)
    raw.differs(gradients[0], torch.zeros(()).expand_as(gradients[0]), by=1e-9)
    one = ask(small, "one")
    ours, theirs = (grad_x_activation(model, one, torch.tensor([7])).scores for model in (away, small))
    raw.same(ours, theirs, relative=0)


@torch.no_grad()
def test_offloaded_weights_are_read_as_they_are_in_memory(away, small):
    assert away.widths == small.widths and away.identity()["weights"] == small.identity()["weights"]
    for module, widths in small.widths.items():
        for layer in range(len(widths)):
            assert torch.equal(away.W_out(layer, module), small.W_out(layer, module))
    assert torch.equal(away.W_U, small.W_U) and torch.equal(away.W_E, small.W_E)
    neurons = Neurons.of([("language", 0, 3), ("language", 2, 1), ("projector", 0, 5)], widths=small.widths)
    ours, theirs = decode(away, neurons, k=4), decode(small, neurons, k=4)
    assert torch.equal(ours.tokens, theirs.tokens) and torch.equal(ours.effects, theirs.effects)
    inputs = ask(small, "one")
    assert torch.equal(logit_lens(away, inputs).log_probs, logit_lens(small, inputs).log_probs)
    some, word = Neurons.of([(0, 3), (1, 7)], small.widths), torch.tensor([7])
    ours, theirs = (residual(model, inputs, neurons=some) for model in (away, small))
    assert torch.equal(ours.parts, theirs.parts)
    ours, theirs = (direct_logit_attribution(model, inputs, word, by="neuron") for model in (away, small))
    assert torch.equal(ours.parts, theirs.parts) and torch.equal(ours.logits, theirs.logits)
    ours, theirs = (nearest_tokens(model, inputs, controls=10) for model in (away, small))
    assert torch.equal(ours.cosines, theirs.cosines) and torch.equal(ours.controls["norm"], theirs.controls["norm"])


@torch.no_grad()
def test_the_sums_of_an_offloaded_models_cache_are_those_of_the_one_in_memory(away, small):
    inputs, found = ask(small, "mixed"), []
    for model in (away, small):
        _, cache = model.run_with_cache(inputs)
        stack = cache.decompose_resid(apply_ln=True)
        found.append(
            [
                stack,
                cache.logit_attrs(cache.decompose_resid(), tokens=7),
                cache.get_full_resid_decomposition(expand_neurons=True),
                cache.stack_neuron_results(-1),
                cache.stack_head_results(-1),
            ]
        )
    for ours, theirs in zip(*found, strict=True):
        raw.same(ours, theirs, relative=0)
    assert away.hf_model.model.language_model.layers[1].mlp.down_proj.weight.is_meta  # they went back


@pytest.mark.parametrize("activation", ["resid_pre", "z"])
def test_patching_in_an_offloaded_model_is_that_of_the_one_in_memory(away, small, activation):
    runs = dict(clean=ask(small, "padded"), corrupted=ask(small, "padded", first=5))
    how = dict(activation=activation, positions=[9, -1], metric=lambda logits: logits[:, -1, 7])
    for patch in (activation_patching, attribution_patching):
        ours, theirs = (patch(model, **runs, **how).metric for model in (away, small))
        raw.same(ours, theirs, relative=1e-6)
    assert away.hf_model.model.language_model.layers[2].mlp.down_proj.weight.is_meta  # where a block was left early, too
    assert away.hf_model.model.language_model.layers[2].self_attn.k_proj.weight.is_meta


def test_an_edit_of_a_weight_that_waits_in_memory_changes_the_identity(small_folder):
    plain = LlavaForConditionalGeneration.from_pretrained(small_folder).eval()
    cpu_offload(plain, "cpu")
    model = HookedMLLM(plain, AutoProcessor.from_pretrained(small_folder))
    before = model.identity()["weights"]
    assert model.identity()["weights"] == before
    with torch.no_grad():
        model.W_out(1)[3, 5] += 1e-3
    assert model.identity()["weights"] != before


# ---------------------------------------------------------------- one weight

LINEAR = torch.arange(6.0).reshape(3, 2)


def test_output_rows_are_one_per_input_in_either_layout():
    linear, turned = nn.Linear(2, 3, bias=False), Conv1D(3, 2)
    with torch.no_grad():
        linear.weight.copy_(LINEAR)
        turned.weight.copy_(LINEAR.T)
    for module in (linear, turned):
        assert torch.equal(output_rows(module), LINEAR.T) and units(module) == 2
        assert output_rows(module).data_ptr() == module.weight.data_ptr()  # a view


class Packed(nn.Module):
    """A linear map as GPTQ, AWQ and kin keep it."""

    def __init__(self):
        super().__init__()
        self.qweight, self.scales = (nn.Parameter(torch.ones(2, 2), requires_grad=False) for _ in range(2))


def integers():
    linear = nn.Linear(2, 3)
    linear.weight = nn.Parameter(torch.ones(3, 2, dtype=torch.uint8), requires_grad=False)
    return linear


def small_floats():
    linear = nn.Linear(2, 3)
    linear.weight = nn.Parameter(torch.ones(3, 2).to(torch.float8_e4m3fn), requires_grad=False)
    return linear


def adapted():
    linear = nn.Linear(2, 3)
    linear.base_layer = nn.Linear(2, 3)
    return linear


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (Packed, "Packed.*qweight, scales"),
        (integers, "Linear.*uint8"),
        (small_floats, "Linear.*float8"),
        (adapted, "merge the adapter"),
        (lambda: nn.Linear(2, 3, device="meta"), "meta"),
        (lambda: nn.Conv2d(1, 2, 3), r"Conv2d.*\[2, 1, 3, 3\]"),
    ],
)
def test_a_weight_that_is_not_plain_numbers_is_refused_by_its_modules_name(make, says):
    with pytest.raises(UnreadableWeight, match=says):
        output_rows(make())


def test_weights_are_readable_inside_the_with_only():
    linear = nn.Linear(2, 3)
    truth = linear.weight.detach().clone()
    cpu_offload(linear, "cpu")
    with readable([linear]):
        assert torch.equal(linear.weight, truth)
    assert linear.weight.is_meta and torch.equal(weight_of(linear), truth) and device_of(linear).type == "cpu"


def quantizer(kind):
    """Return the settings of one way of packing weights, or skip where its package is not installed."""
    import transformers

    if kind.startswith("bitsandbytes"):
        pytest.importorskip("bitsandbytes")
        eight = dict(load_in_8bit=True)
        apart = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]  # on a CPU sizes are multiples of 32
        four = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=apart)
        return transformers.BitsAndBytesConfig(**(eight if kind.endswith("8") else four))
    if kind.startswith("quanto"):
        pytest.importorskip("optimum.quanto")
        return transformers.QuantoConfig(weights=f"int{kind[-1]}")
    torchao = pytest.importorskip("torchao.quantization")
    return transformers.TorchAoConfig(torchao.Int8WeightOnlyConfig())


# How far the product of what is read lies from what the module computes: bitsandbytes' 8 bits round the activations too.
ROUNDED = {"bitsandbytes-4": 1e-2, "bitsandbytes-8": 3e-2, "quanto-8": 1e-5, "quanto-4": 1e-5, "torchao-8": 1e-5}


@pytest.mark.parametrize("kind", ROUNDED)
@torch.no_grad()
def test_a_quantised_models_weights_are_read_as_the_numbers_that_it_multiplies_with(kind, tmp_path):
    packing = quantizer(kind)
    folder = tiny("llava-clip-llama", tmp_path, d_model=64, d_mlp=128)
    whole = HookedMLLM.from_pretrained(folder, device="cpu")
    model = HookedMLLM.from_pretrained(folder, device="cpu", quantization_config=packing)
    inputs, identity, before = ask(model, "mixed"), model.identity(), model.W_out(1)
    assert before.shape == whole.W_out(1).shape and before.is_floating_point() and model.widths == whole.widths
    assert 0 < (before - whole.W_out(1)).abs().max() < 0.2 * whole.W_out(1).abs().max()  # rounded, and no packed bytes
    logits, cache = model.run_with_cache(inputs)
    post, out = cache["blocks.1.mlp.hook_post"], cache["blocks.1.hook_mlp_out"]
    raw.same(post.float() @ model.W_out(1).float(), out, relative=ROUNDED[kind])
    raw.same(model.unembed(cache["blocks.2.hook_resid_post"]), logits, relative=1e-5)
    whole_sum = cache.get_full_resid_decomposition(expand_neurons=True).sum(0)
    raw.same(whole_sum, cache["blocks.2.hook_resid_post"], relative=ROUNDED[kind])
    assert model.generate(inputs, max_new_tokens=3).tokens.shape[0] == 3
    torch.testing.assert_close(model.W_out(1), before, rtol=1e-2, atol=1e-3)
    assert model.identity() == identity and identity["weights"] != whole.identity()["weights"]
    neurons = Neurons.of([("language", 0, 3)], widths=model.widths)
    assert decode(model, neurons, k=3).effects.isfinite().all()


# ---------------------------------------------------------------- options


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_a_dtype_is_torchs_or_its_name(small_folder, dtype):
    assert HookedMLLM.from_pretrained(small_folder, device="cpu", dtype=dtype).W_U.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        (dict(dtype="bf16"), ValueError, "bfloat16"),
        (dict(dtype="int8"), ValueError, "int8"),
        (dict(device="cpu", device_map="auto"), ValueError, "leave one out"),
        (dict(offload_folder="here"), ValueError, "device_map"),
        (dict(max_memory={"cpu": "1GB"}), ValueError, "device_map"),
        (dict(device_map={"": "cpu", "model.retina": "cpu"}), ValueError, "retina"),
        (dict(attn_implementation="eager"), TypeError, "mmlens sets its own"),
        (dict(use_safetensors=False), TypeError, "allow_bin"),
        (dict(torch_dtype="float16"), TypeError, "say dtype"),
        (dict(load_in_4bit=True), TypeError, "quantization_config"),
        (dict(low_cpu_mem_usage=True), TypeError, "does nothing"),
        (dict(quantisation_config=None), TypeError, "quantisation_config"),
    ],
)
def test_a_mistaken_option_is_named(small_folder, options, error, says):
    with pytest.raises(error, match=says):
        HookedMLLM.from_pretrained(small_folder, **options)


@torch.no_grad()
def test_device_map_auto_is_the_whole_model_where_it_fits(small_folder, small):
    model = HookedMLLM.from_pretrained(small_folder, device_map="auto")
    inputs = ask(small, "one").to(model.device)
    raw.same(model(inputs).cpu(), small(inputs.to(small.device)).cpu())


def test_an_unknown_model_type_is_refused_before_its_repositorys_code_is_asked(tmp_path):
    ran = tmp_path / "ran"
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "mystery", "auto_map": {"AutoConfig": "code.Mystery", "AutoModel": "code.Mystery"}})
    )
    (tmp_path / "code.py").write_text(f"open({str(ran)!r}, 'w')")
    for trust in (False, True):
        with pytest.raises(UnsupportedModel, match="'mystery'"):
            HookedMLLM.from_pretrained(tmp_path, trust_remote_code=trust)
    assert not ran.exists()


# ---------------------------------------------------------------- .bin files


@pytest.fixture
def bin_folder(small_folder, tmp_path):
    folder = shutil.copytree(small_folder, tmp_path / "bin")
    (folder / "model.safetensors").unlink()
    weights = LlavaForConditionalGeneration.from_pretrained(small_folder).state_dict()
    torch.save({name: weight.clone() for name, weight in weights.items()}, folder / "pytorch_model.bin")
    return folder


@torch.no_grad()
def test_bin_files_are_refused_unless_allowed_and_then_are_the_same_model(bin_folder, small):
    with pytest.raises(UnsupportedModel, match=r"\.bin files only: say allow_bin=True"):
        HookedMLLM.from_pretrained(bin_folder)
    model = HookedMLLM.from_pretrained(bin_folder, device="cpu", allow_bin=True)
    assert model.identity()["weights"] == small.identity()["weights"]


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_code_in_a_bin_file_is_never_run(bin_folder, tmp_path):
    torch.save({"weight": Payload(str(tmp_path / "ran"))}, bin_folder / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        HookedMLLM.from_pretrained(bin_folder, device="cpu", allow_bin=True)
    assert not (tmp_path / "ran").exists()


def test_weights_that_the_files_lack_are_warned_about(small_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(small_folder, tmp_path / "lacks")
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in weights if name.endswith("layers.1.mlp.down_proj.weight") and "language" in name)
    save_file(
        {name: weight for name, weight in weights.items() if name != gone}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.warns(UserWarning, match=r"lack 1 of the model's weights.*layers\.1\.mlp\.down_proj"):
        HookedMLLM.from_pretrained(folder, device="cpu")


# ---------------------------------------------------------------- no network


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_id_out_of_reach_is_told_at_once(no_network, monkeypatch, tmp_path, offline):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match="hf download mmlens/nowhere"):
        HookedMLLM.from_pretrained("mmlens/nowhere", cache_dir=tmp_path)
    assert time.monotonic() - start < 5  # transformers would try again for half a minute


def test_a_hub_id_that_is_cached_needs_no_network(no_network, monkeypatch, small_folder, small, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    commit = "0123456789012345678901234567890123456789"
    repo = tmp_path / "models--tests--tiny"
    shutil.copytree(small_folder, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    model = HookedMLLM.from_pretrained("tests/tiny", device="cpu", cache_dir=tmp_path)
    assert model.identity() == {"model": "tests/tiny", "revision": commit, "weights": small.identity()["weights"]}
    assert np.isfinite(model(ask(model, "one")).detach().numpy()).all()
