"""Several processes come to what one comes to: exactly for counts and maxima, to rounding for sums."""

import signal

import job
import pytest
import torch

import mmlens
from mmlens.sweeps import Sweep


@pytest.fixture(autouse=True)
def one_time(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")  # what is saved has its date in it


def sweep(model, examples, **options):
    return mmlens.sweep(model, examples, job.accumulators(model), batch_size=4, every=12, progress=False, **options)


def assert_equal_but_for_rounding(one, other):
    """Counts, maxima, strongest examples, failures equal; sums to 1e-9."""
    assert one.failures == other.failures and one.examples == other.examples
    assert one.provenance.inputs == other.provenance.inputs
    for name, result in one.results.items():
        theirs = other.results[name]
        fields = ("value", "place", "position") if name == "top" else ("tokens", "samples", "short", *result.totals)
        for field in fields:
            mine, yours = (getattr(r, field) if hasattr(r, field) else r.totals[field] for r in (result, theirs))
            for module, table in mine.items():
                if field in ("sum", "mean", "probability", "attn_k", "attn_q") or (field == "max" and name == "samples"):
                    torch.testing.assert_close(table, yours[module], rtol=1e-9, atol=1e-9)
                else:
                    assert torch.equal(table, yours[module]), (name, field, module)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:1 example")
@pytest.mark.parametrize("size", [2, 3])
def test_two_or_three_processes_equal_one(small, tmp_path, size):
    examples = job.examples(21, broken=(7,))
    codes = job.forked(size, lambda rank: sweep(small, examples).save(tmp_path / f"part-{rank}"))
    assert codes == [0] * size
    alone = sweep(small, examples)
    parts = [Sweep.load(tmp_path / f"part-{rank}") for rank in range(size)]
    for part in parts:
        assert_equal_but_for_rounding(alone, part)
    assert len({(tmp_path / f"part-{rank}.safetensors").read_bytes() for rank in range(size)}) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:1 example")
def test_when_a_process_is_killed_the_others_fail_and_any_number_of_processes_goes_on(small, tmp_path):
    examples, state = job.examples(37, broken=(7,)), tmp_path / "state"

    def dying(rank):
        sweep(small, job.Slowly(examples, killed_at=30 if rank else None), checkpoint=state)

    codes = job.forked(2, dying)
    assert codes[1] == -signal.SIGKILL and codes[0] not in (0, -signal.SIGKILL)
    read = []

    class Reading(job.Slowly):
        def __getitem__(self, place):
            read.append(place)
            return super().__getitem__(place)

    resumed = sweep(small, Reading(examples), checkpoint=state)
    assert min(set(read) - {0}) > 1, "what was counted before is not read again"
    assert_equal_but_for_rounding(sweep(small, examples), resumed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:20 example")
def test_a_process_whose_examples_all_fail_for_a_while_does_not_give_up(small, tmp_path):
    """Behind the first meeting, at 40 of 80 examples, process 1 reads nothing but broken ones."""
    broken = [place for place in range(40, 80) if place // 4 % 2 == 1]
    examples, found = job.examples(80, broken=broken), [tmp_path / f"part-{rank}" for rank in range(2)]

    def work(rank):
        options = dict(batch_size=4, every=40, checkpoint=tmp_path / "state", progress=False)
        counts = {"counts": mmlens.TokenStats(small.widths, statistics=("count",))}
        mmlens.sweep(small, examples, counts, **options).save(found[rank])

    assert job.forked(2, work) == [0, 0]
    assert Sweep.load(found[1]).examples == 80 - len(broken) == 60


def test_processes_with_other_examples_or_arguments_stop_with_the_reason(small, tmp_path):
    def other_examples(rank):
        with pytest.raises(RuntimeError, match="their examples differ"):
            sweep(small, job.examples(9 + rank), checkpoint=tmp_path / "state")

    def other_arguments(rank):
        with pytest.raises(RuntimeError, match="their parameters differ"):
            mmlens.sweep(small, job.examples(9), job.accumulators(small), batch_size=2 + rank, progress=False)

    def in_use(rank):
        with pytest.raises(ValueError, match="another sweep is writing"):
            sweep(small, job.examples(9), checkpoint=tmp_path / "held")

    from filelock import FileLock

    assert job.forked(2, other_examples) == [0, 0]
    assert job.forked(2, other_arguments) == [0, 0]
    with FileLock(f"{tmp_path / 'held.safetensors'}.lock"):
        assert job.forked(2, in_use) == [0, 0]
