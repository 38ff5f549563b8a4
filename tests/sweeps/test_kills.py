"""What can only be seen in processes of their own: kills at random moments, torchrun, accelerate, two nodes, memory."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import job
import pytest
from test_processes_together import assert_equal_but_for_rounding

import mmlens
from mmlens.sweeps import Sweep

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:1 example")]
SCRIPT = Path(job.__file__)
COUNT = 101


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SCRIPT.parent.parent), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture(scope="module")
def alone(small_folder, tmp_path_factory):
    """What one process that nobody disturbs comes to."""
    out = tmp_path_factory.mktemp("alone") / "out"
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "0", "PYTHONPATH": str(SCRIPT.parent.parent)}
    subprocess.run([sys.executable, SCRIPT, small_folder, out], check=True, env=environment)
    return Path(f"{out}-0.safetensors")


def torchrun(*options):
    return [Path(sys.executable).parent / "torchrun", *options, SCRIPT]


def test_killed_again_and_again_at_random_moments_the_result_is_the_same_to_the_last_byte(small, tmp_path, alone):
    """Forks of this process, whose model is loaded: each is killed at a random moment of its sweep, or finishes it."""
    moments, kills = random.Random(0), 0
    for attempt in range(20):
        state, out = tmp_path / f"state-{attempt}", tmp_path / f"out-{attempt}"
        for _ in range(200):
            child = os.fork()
            if not child:
                try:
                    made = job.Slowly(job.Made(COUNT, broken=(7,)))
                    options = dict(batch_size=4, every=12, checkpoint=state, progress=False)
                    mmlens.sweep(small, made, job.accumulators(small), **options).save(out)
                finally:
                    os._exit(0)
            time.sleep(moments.uniform(0.02, 1.0))
            os.kill(child, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if code == 0:
                break
            kills += 1
        found, expected = Sweep.load(out), Sweep.load(alone)
        assert content(found, tmp_path) == content(expected, tmp_path)
        if kills >= 30:
            break
    print(f"{kills} kills in {attempt + 1} sweeps")
    assert kills >= 20


def content(sweep, folder):
    """Return a result's bytes without the name of the model, which is the path that it was loaded from."""
    text = sweep.save(folder / "one").read_bytes()
    return text.replace(sweep.provenance.model.encode(), b"")


def test_killed_in_an_interpreter_of_its_own_a_sweep_goes_on_in_the_next(small_folder, tmp_path, alone):
    moments, kills = random.Random(1), 0
    command = [sys.executable, SCRIPT, small_folder, tmp_path / "out", "--checkpoint", tmp_path / "state", "--pause", "0.02"]
    while not (tmp_path / "out-0.safetensors").exists():
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert running.stdout is not None and running.stdout.readline() == "ready\n"
        if kills < 3:
            time.sleep(moments.uniform(0.5, 2.0))
            running.kill()
            kills += 1
        running.wait()
    assert kills == 3
    assert (tmp_path / "out-0.safetensors").read_bytes() == alone.read_bytes()


@pytest.mark.parametrize("size", [2, 3])
def test_under_torchrun_a_hundred_and_one_examples_are_counted_once_each(small_folder, tmp_path, alone, size):
    command = [*torchrun("--standalone", f"--nproc_per_node={size}"), small_folder, tmp_path / "out"]
    subprocess.run(command, check=True, timeout=300)
    for rank in range(size):
        assert_equal_but_for_rounding(Sweep.load(alone), Sweep.load(tmp_path / f"out-{rank}"))


def test_where_accelerate_launches_and_has_a_process_group_it_is_the_same(small_folder, tmp_path, alone):
    """Without GPUs, `accelerate launch` wants MPI for several processes; its launcher in Python does not."""
    program = "import accelerate, job; accelerate.debug_launcher(job.main_with_accelerator, num_processes=2)"
    environment = {**os.environ, "PYTHONPATH": f"{SCRIPT.parent}{os.pathsep}{os.environ['PYTHONPATH']}"}
    subprocess.run([sys.executable, "-c", program, small_folder, tmp_path / "out"], check=True, timeout=300, env=environment)
    for rank in range(2):
        assert_equal_but_for_rounding(Sweep.load(alone), Sweep.load(tmp_path / f"out-{rank}"))


def test_on_two_nodes_it_is_the_same(small_folder, tmp_path, alone):
    """Two launchers that meet on this machine's loopback, as those of two machines meet in a network."""
    port = f"--master_port={29_000 + os.getpid() % 1000}"
    nodes = [
        [*torchrun("--nnodes=2", "--nproc_per_node=1", f"--node_rank={node}", "--master_addr=127.0.0.1", port)]
        for node in (0, 1)
    ]
    running = [subprocess.Popen([*node, small_folder, tmp_path / "out"]) for node in nodes]
    assert [one.wait(300) for one in running] == [0, 0]
    for rank in range(2):
        assert_equal_but_for_rounding(Sweep.load(alone), Sweep.load(tmp_path / f"out-{rank}"))


def test_when_one_of_three_is_killed_the_job_fails_in_time_and_two_go_on(small_folder, tmp_path, alone):
    options = [small_folder, tmp_path / "out", "--checkpoint", tmp_path / "state"]
    start = time.monotonic()
    died = subprocess.run([*torchrun("--standalone", "--nproc_per_node=3"), *options, "--kill", "1", "65"], timeout=120)
    assert died.returncode != 0 and time.monotonic() - start < 120
    assert (tmp_path / "state.safetensors").exists() and not list(tmp_path.glob("out-*"))
    subprocess.run([*torchrun("--standalone", "--nproc_per_node=2"), *options], check=True, timeout=300)
    assert_equal_but_for_rounding(Sweep.load(alone), Sweep.load(tmp_path / "out-0"))


def test_memory_does_not_grow_with_examples_nor_with_processes(small_folder, tmp_path):
    peaks = {}
    for count, size in ((50, 1), (500, 1), (50, 2), (50, 4)):
        out = tmp_path / f"{count}-{size}"
        launcher = [sys.executable, SCRIPT] if size == 1 else torchrun("--standalone", f"--nproc_per_node={size}")
        subprocess.run([*launcher, small_folder, out, "--count", str(count)], check=True, timeout=300)
        peaks[count, size] = max(json.loads(Path(f"{out}-{rank}.json").read_text())["peak"] for rank in range(size)) / 1024
    print(f"peak memory in MiB by (examples, processes): { {key: round(peak) for key, peak in peaks.items()} }")
    assert abs(peaks[500, 1] - peaks[50, 1]) < 0.03 * peaks[50, 1], peaks
    assert abs(peaks[50, 4] - peaks[50, 2]) < 0.03 * peaks[50, 2], peaks
