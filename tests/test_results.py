"""What is saved comes back as it was; what was made elsewhere, or is damaged, is said to be so."""

import dataclasses
import warnings

import pytest
import torch
from safetensors.torch import save_file
from support import ask

from mmlens import HookedMLLM, Neurons
from mmlens.analysis import logit_lens
from mmlens.results import Provenance, Result, Storable
from mmlens.testing import tiny


@dataclasses.dataclass(frozen=True)
class Inner(Storable):
    values: torch.Tensor
    name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer(Result):
    scores: dict[str, torch.Tensor]
    parts: tuple[Inner, ...]
    neurons: Neurons
    nested: list[object]
    empty: None = None
    flag: bool = True


def outer(model):
    provenance = Provenance.record(
        model, (ask(model, "one").digest(),), seed=3, k=20, groups=("image", "text"), where=object
    )
    return Outer(
        provenance=provenance,
        scores={"a": torch.randn(2, 3), "b": torch.arange(4), "c": torch.randn(3).bfloat16(), "d": torch.tensor(True)},
        parts=(Inner(torch.randn(2), "one"), Inner(torch.randn(0, 5), "two")),
        neurons=Neurons.of([(0, 1), ("vision", 1, 2)], model.widths),
        nested=[1, 2.5, "text", None, (torch.ones(1), {"deep": [torch.zeros(2)]})],
    )


def alike(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    elif isinstance(one, Storable):
        for field in dataclasses.fields(one):
            alike(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            alike(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            alike(a, b)
    else:
        assert one == other


def test_a_nested_result_comes_back_as_it_was(small, tmp_path):
    result = outer(small)
    path = result.save(tmp_path / "deep" / "result")
    assert path.name == "result.safetensors"
    alike(Outer.load(path), result)
    alike(Outer.load(tmp_path / "deep" / "result"), result)  # the ending may be left out
    alike(Storable.load(path), result)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_saving_again_replaces_and_a_view_is_saved_whole(small, tmp_path):
    base = torch.arange(12.0).view(3, 4)
    for values in (base.T, base[:, 1], base[::2]):
        path = Inner(values, "view").save(tmp_path / "inner")
        assert torch.equal(Inner.load(path).values, values)


def test_provenance_says_what_a_result_was_made_with(small):
    provenance = outer(small).provenance
    assert provenance.model == small.name and provenance.weights == small.identity()["weights"]
    assert provenance.inputs == (ask(small, "one").digest(),) and provenance.seed == 3
    assert provenance.parameters["k"] == 20 and provenance.parameters["groups"] == ["image", "text"]
    assert torch.__version__.startswith(provenance.versions["torch"])


def test_loading_beside_other_weights_warns_and_beside_the_same_does_not(small, small_folder, tmp_path):
    path = outer(small).save(tmp_path / "result")
    same = HookedMLLM.from_pretrained(small_folder, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Outer.load(path, model=same)
    with torch.no_grad():
        same.hf_model.model.language_model.layers[0].mlp.down_proj.weight[1, 2] += 0.01
    other = HookedMLLM.from_pretrained(tiny("llava-clip-llama", tmp_path / "other", seed=1), device="cpu")
    for model in (same, other):
        with pytest.warns(UserWarning, match="do not mix their numbers"):
            Outer.load(path, model=model)


def test_a_damaged_or_foreign_file_is_refused(small, tmp_path):
    path = outer(small).save(tmp_path / "result")
    whole = path.read_bytes()
    for damaged in (whole[:-10], whole[:100], b"", b"not a tensor in sight"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            Outer.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="in its header"):
        Outer.load(path)
    with pytest.raises(FileNotFoundError, match="no saved result"):
        Outer.load(tmp_path / "missing")


def test_loading_as_another_kind_names_the_right_one(small, tmp_path):
    path = outer(small).save(tmp_path / "result")
    with pytest.raises(ValueError, match=r"call Outer\.load"):
        Neurons.load(path)
    Result.load(path)


def test_what_can_not_be_saved_is_refused_by_its_place_and_leaves_no_file(tmp_path):
    with pytest.raises(TypeError, match=r"Inner\.name is a set"):
        Inner(torch.zeros(1), {1, 2}).save(tmp_path / "inner")
    with pytest.raises(TypeError, match="text keys"):
        Inner(torch.zeros(1), {1: "a"}).save(tmp_path / "inner")
    assert list(tmp_path.iterdir()) == []


def test_a_result_is_shown_by_its_shapes_and_inputs_by_what_they_hold(small):
    inputs = ask(small, "padded")
    logits, cache = small.run_with_cache(inputs, "*.hook_resid_post")
    shown = repr(logit_lens(small, inputs, top_k=3))
    assert shown.startswith(f"LogitLens(site='resid', tokens [4, 2, {logits.shape[1]}, 3], ")
    counts = {kind: int(inputs.mask(kind).sum()) for kind in ("text", "special", "image", "pad")}
    assert repr(inputs).endswith(": " + ", ".join(f"{count} {kind}" for kind, count in counts.items()) + ")")
    assert repr(cache) == f"ActivationCache({len(cache)} activations of {inputs!r})"
    assert "3 layers" in repr(small) and "144 language" in repr(small)
    assert repr(small.generate(inputs, max_new_tokens=2)).startswith("Generation('")
    with pytest.raises(KeyError, match="where they are named"):
        cache["pattern", 0]
