"""One process is the ordinary case; several each load a model of their own."""

import pytest
import torch

from mmlens import HookedMLLM
from mmlens.loading import best_device
from mmlens.processes import Processes, processes


def test_alone_a_process_is_the_first_of_one_and_agrees_with_itself():
    assert processes() == Processes(0, 1)
    assert processes().first
    assert processes().gather({"a": [1, "b"]}) == [{"a": [1, "b"]}]
    processes().agree("number", 3)


def test_a_model_that_is_spread_over_devices_is_for_one_process(small_folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes would each do so: run one process"):
        HookedMLLM.from_pretrained(small_folder, device_map="auto")


def test_each_process_of_a_machine_has_a_device_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert best_device() == "cuda"
    monkeypatch.setenv("WORLD_SIZE", "4")
    for rank, device in enumerate(("cuda:0", "cuda:1", "cuda:0", "cuda:1")):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert best_device() == device
