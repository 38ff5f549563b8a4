"""A sweep gathers what single runs would, leaves out what fails and says so, and goes on where it was stopped."""

import os
import resource
import signal
import threading

import datasets
import job
import numpy as np
import pytest
import torch
from filelock import FileLock
from support import leaves_no_hooks

import mmlens
from mmlens.hooks import feed
from mmlens.stats import TokenStats
from mmlens.sweeps import Sweep, SweepFailed


@pytest.fixture
def nineteen():
    return job.examples(19)


@pytest.fixture(autouse=True)
def one_time(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")


def run(model, examples, **options):
    return mmlens.sweep(model, examples, job.accumulators(model), **{"batch_size": 4, "progress": False, **options})


def content(sweep, folder, name="result"):
    return sweep.save(folder / name).read_bytes()


def test_a_sweep_counts_what_transformers_own_modules_put_out(small, plain_small, nineteen):
    """Independent truth: hooks of torch on a model that mmlens never touched, the same batches, numpy."""
    found = run(small, nineteen)["tokens"]
    layers = plain_small.model.language_model.layers
    seen = {}
    for layer, block in enumerate(layers):
        block.mlp.down_proj.register_forward_pre_hook(lambda _, args, layer=layer: seen.__setitem__(layer, args[0]))
    count, total = np.zeros((3, 3, len(layers), 48), int), np.zeros((3, 3, len(layers), 48))
    for start in range(0, 19, 4):
        batch = nineteen[start : start + 4]
        inputs = small.to_inputs([one.text for one in batch], images=[one.images for one in batch])
        with torch.no_grad():
            plain_small(**inputs.kwargs(), position_ids=(inputs.attention_mask.cumsum(-1) - 1).clamp(min=0))
        for row, one in enumerate(batch):
            kinds = inputs.modality[row].numpy()
            for column, own in enumerate((kinds == 2, kinds == 0, inputs.attention_mask[row].bool().numpy())):
                for layer in seen:
                    values = seen[layer][row].numpy().astype(np.float64)[own]
                    count[job.LABELS.index(one.label), column, layer] += (values > 0).sum(0)
                    total[job.LABELS.index(one.label), column, layer] += values.sum(0)
    np.testing.assert_array_equal(found.totals["count"]["language"], count)
    np.testing.assert_allclose(found.totals["sum"]["language"], total, rtol=1e-5, atol=1e-5)
    assert found.tokens["vision"][:, 0].sum() == 26 * sum(one.images is not None for one in nineteen)


class Heard(TokenStats):
    """Counts, and notes the positions of what it reads besides: of the logits, or of a stream."""

    def reads(self, name):
        self.name, self.heard = name, []
        return self

    def hooks(self, model, batch):
        return [*super().hooks(model, batch), (self.name, feed(lambda value, hook: self.heard.append(value.shape[1])))]


@pytest.mark.parametrize("name", ["hook_unembed", "blocks.0.hook_resid_pre"])
def test_only_where_logits_are_read_is_every_position_unembedded(small, name):
    heard, widths = Heard(small.widths, groups=("text",)).reads(name), []
    head = small.bridge.unembed.original_component
    handle = head.register_forward_hook(lambda module, args, out: widths.append(out.shape[1]))
    mmlens.sweep(small, [mmlens.Example("the red car " * 5)], {"heard": heard}, progress=False)
    handle.remove()
    assert heard.heard[0] > 10 and widths == [heard.heard[0] if name == "hook_unembed" else 1]


def test_lists_generators_and_data_sets_are_swept_alike(small, tmp_path, nineteen):
    texts = [one for one in nineteen if one.images is None]
    rows = [{"text": one.text, "label": one.label, "id": one.id, "answers": list(one.answers)} for one in texts]
    table = datasets.Dataset.from_list(rows)
    made = [TokenStats(small.widths, labels=job.LABELS) for _ in range(5)]
    kinds = (texts, iter(texts), rows, table, table.to_iterable_dataset())
    for examples, accumulator in zip(kinds, made, strict=True):
        mmlens.sweep(small, examples, {"tokens": accumulator}, batch_size=2, progress=False)
    assert all(torch.equal(made[0].language_sum, one.language_sum) for one in made[1:])


def test_examples_that_fail_are_left_out_and_named(small, nineteen):
    nineteen[3] = mmlens.Example("a", images="nowhere.png", label="photo", id="unreadable")
    nineteen[8] = mmlens.Example("a " * 6000, label="photo", id="long")
    nineteen[9] = mmlens.Example("a car", label="painting", id="mislabelled")
    nineteen[12] = {"words": "no text"}
    with pytest.warns(UserWarning, match=r"4 example\(s\) were left out, beside 15 that counted; the first: example"):
        found = run(small, nineteen)
    assert [(one.place, one.id) for one in found.failures] == [
        (3, "unreadable"),
        (8, "long"),
        (9, "mislabelled"),
        (12, "12"),
    ]
    for one, said in zip(found.failures, ("nowhere.png", "reads at most", "label is one of", "'words'"), strict=True):
        assert said in one.reason
    assert found.examples == 15
    assert int(found["tokens"].samples["language"][:, 2].sum()) == 15


def test_one_example_with_numbers_that_are_not_finite_does_not_spoil_its_batch(small, nineteen):
    table = small.hf_model.get_input_embeddings().weight
    word = small.to_token("there")
    kept = table.data[word].clone()
    nineteen[6] = mmlens.Example("there", label="photo", id="poisoned")
    try:
        table.data[word] = torch.nan
        with pytest.warns(UserWarning, match="poisoned"):
            found = run(small, nineteen)
    finally:
        table.data[word] = kept
    assert [one.id for one in found.failures] == ["poisoned"]
    assert "NaN" in found.failures[0].reason
    assert found["tokens"].totals["sum"]["language"].isfinite().all()


def test_a_batch_that_does_not_fit_into_memory_is_run_in_parts(small, nineteen):
    """Every run of more than two rows, and of one example at all, runs out of memory."""

    def limited(module, args, kwargs):
        rows = kwargs["inputs_embeds"].shape[0]
        if rows > 2 or (kwargs["inputs_embeds"].shape[1] > 60):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    nineteen[5] = mmlens.Example("a " * 70, label="photo", id="huge")
    handle = small.hf_model.model.language_model.register_forward_pre_hook(limited, with_kwargs=True)
    try:
        with pytest.warns(UserWarning, match="huge"):
            found = run(small, nineteen)
    finally:
        handle.remove()
    assert [one.id for one in found.failures] == ["huge"]
    assert "out of memory" in found.failures[0].reason
    nineteen.pop(5)
    assert torch.equal(found["tokens"].tokens["language"], run(small, nineteen)["tokens"].tokens["language"])


def test_where_everything_fails_a_sweep_stops_early_and_says_why(small, tmp_path):
    broken = [mmlens.Example("a", images="nowhere.png") for _ in range(100)]
    with pytest.raises(SweepFailed, match=r"first 16 examples all failed, the first as .*nowhere\.png"):
        run(small, broken, checkpoint=tmp_path / "state")
    assert not (tmp_path / "state.safetensors").exists()
    with pytest.raises(SweepFailed, match="there are no examples"):
        run(small, [])
    used = job.accumulators(small)
    mmlens.sweep(small, [mmlens.Example("a", label="photo")], used, progress=False)
    with pytest.raises(ValueError, match="'tokens' has 1 examples in it: make a new"):
        mmlens.sweep(small, [mmlens.Example("a", label="photo")], used, progress=False)
    with leaves_no_hooks(small), pytest.raises(mmlens.liveness.UnknownHook):
        bad = TokenStats({"language": (48,) * 9})
        mmlens.sweep(small, [mmlens.Example("a")], {"bad": bad}, progress=False)


@pytest.mark.parametrize("stopped", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("at", [0, 1, 6, 13, 18])
def test_stopped_anywhere_and_resumed_the_result_is_the_same_to_the_last_byte(small, tmp_path, nineteen, stopped, at):
    def until():
        yield from nineteen[:at]
        raise stopped

    whole = content(run(small, nineteen), tmp_path, "whole")
    with pytest.raises(stopped):
        run(small, until(), checkpoint=tmp_path / "state", every=8)
    again = content(run(small, iter(nineteen), checkpoint=tmp_path / "state", every=8), tmp_path, "again")
    assert again == whole
    assert content(run(small, nineteen, checkpoint=tmp_path / "state"), tmp_path, "over") == whole


def test_a_killed_process_goes_on_from_its_checkpoint(small, small_folder, tmp_path, nineteen):
    """The child is a fork of this process, killed as it reads example 14; tests/sweeps/test_kills.py kills at random."""
    child = os.fork()
    if not child:
        try:
            run(small, job.Slowly(nineteen, killed_at=14), checkpoint=tmp_path / "state", every=4)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    read = []

    class Reading(job.Slowly):
        def __getitem__(self, place):
            read.append(place)
            return super().__getitem__(place)

    again = run(small, Reading(nineteen), checkpoint=tmp_path / "state", every=4)
    assert content(again, tmp_path, "again") == content(run(small, nineteen), tmp_path, "whole")
    assert not set(range(1, 11)) & set(read), "what was counted before is not read again"


def test_ctrl_c_in_a_run_leaves_whole_batches(small, tmp_path, nineteen):
    """A real SIGINT, at whatever operation it strikes."""
    whole = content(run(small, nineteen), tmp_path, "whole")
    for delay in (0.2, 0.5, 1.0, 2.0, 4.0):
        if (tmp_path / "state.safetensors").exists():
            break
        timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            run(small, job.Slowly(nineteen, pause=0.05), checkpoint=tmp_path / "state", every=100)
        except KeyboardInterrupt:
            continue
        finally:
            timer.cancel()
    assert (tmp_path / "state.safetensors").exists()
    assert content(run(small, nineteen, checkpoint=tmp_path / "state", every=100), tmp_path, "again") == whole


def test_a_full_disk_is_warned_about_and_leaves_the_last_state(small, tmp_path, nineteen):
    """A limit on the size of files is what this process can have of a full disk: the write really fails."""
    state = tmp_path / "state.safetensors"
    with pytest.raises(OSError):
        run(small, _failing(nineteen, 9), checkpoint=state, every=4)
    before = state.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
        with pytest.warns(UserWarning, match="could not be written"):
            found = run(small, nineteen, checkpoint=state, every=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert state.read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))
    assert content(found, tmp_path) == content(run(small, nineteen, checkpoint=state), tmp_path)


def _failing(examples, at):
    yield from examples[:at]
    raise OSError


def test_a_checkpoint_that_is_in_use_damaged_or_foreign_is_refused_and_left_as_it_is(small, tmp_path, nineteen):
    state = tmp_path / "state.safetensors"
    with FileLock(f"{state}.lock"), pytest.raises(ValueError, match="another sweep is writing"):
        run(small, nineteen, checkpoint=state)
    with pytest.raises(OSError):
        run(small, _failing(nineteen, 9), checkpoint=state)
    good = state.read_bytes()

    def refused(says, examples=nineteen, error=ValueError, **options):
        before = state.read_bytes()
        with pytest.raises(error, match=says):
            run(small, examples, checkpoint=state, **options)
        assert state.read_bytes() == before

    refused("batch_size is 2 here, and 4 there", batch_size=2)
    refused("chat is True", chat=True)
    refused("there already", resume=False, error=FileExistsError)
    other = [*nineteen[:7], mmlens.Example("another", label="photo"), *nineteen[8:]]
    refused("number 7 is not the one that it was", other)
    refused("number 7 is not the one that it was", iter(other))
    refused("now there are fewer", nineteen[:5])
    with pytest.raises(ValueError, match="accumulators"):
        mmlens.sweep(small, nineteen, {"tokens": TokenStats(small.widths)}, batch_size=4, checkpoint=state, progress=False)
    edited = small.hf_model.model.language_model.layers[0].mlp.down_proj.weight
    kept = edited.detach().clone()
    with torch.no_grad():
        edited[0, 0] += 1
        refused("weights is")
        edited.copy_(kept)
    for damaged in (good[: len(good) // 2], b"", good[:8] + b"x" + good[9:]):
        state.write_bytes(damaged)
        refused("no checkpoint of this sweep|not a whole safetensors")
    mmlens.top_k(torch.rand(3, 48), 3, widths=small.widths).save(state)
    refused("holds a Neurons")
    state.write_bytes(good)
    run(small, nineteen, checkpoint=state)
    refused("now there are more", [*nineteen, mmlens.Example("a", label="photo")])


def test_a_sweep_shows_its_rate_and_what_is_left(small, capsys, nineteen):
    run(small, nineteen, progress=True)
    shown = capsys.readouterr().err
    assert "19/19" in shown and "examples/s" in shown and "<" in shown
    run(small, nineteen)
    assert not capsys.readouterr().err


def test_a_sweep_saves_and_loads(small, tmp_path, nineteen):
    found = run(small, nineteen)
    again = Sweep.load(found.save(tmp_path / "sweep"), model=small)
    assert again.examples == found.examples
    assert torch.equal(again["tokens"].table("mean").nan_to_num(-9), found["tokens"].table("mean").nan_to_num(-9))
    top = mmlens.top_k(again["tokens"].scores("mean", group="all"), 5, widths=small.widths)
    assert len(again["tokens"].at(top, "mean", group="all")) == 5
    assert torch.allclose(again["tokens"].at(top, "mean", group="all"), top.score)


def test_labels_pooled_are_all_their_positions_together(small, nineteen):
    apart = run(small, nineteen)["tokens"]
    together = mmlens.sweep(small, nineteen, {"all": TokenStats(small.widths)}, batch_size=4, progress=False)["all"]
    for statistic in ("probability", "mean", "max"):
        torch.testing.assert_close(apart.scores(statistic, group="all"), together.scores(statistic), rtol=1e-12, atol=1e-12)
