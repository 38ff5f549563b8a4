"""A model card says what was measured, on the shipped training seed and over all of them."""

import json

import pytest

from mmlens.organisms import CHECKPOINTS, cards
from mmlens.organisms.pictosound import card as of_sounds
from mmlens.organisms.pictoworld import card as of_pictures

ABOUT = {"split": "held_out", "examples": 10, "seed": 0}


def run(folder, seed, loss=1.0, minutes=2.0):
    """Write the log of a training run as train does, and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    entry = {
        "stage": "tower",
        "seed": seed,
        "steps": 5,
        "batch": 2,
        "threads": 1,
        "seconds": 60 * minutes,
        "losses": [9, loss],
    }
    (folder / "training.jsonl").write_text(json.dumps(entry) + "\n")
    return folder


def rated(rate):
    return {"exact_match": {"image": {"color": {"rate": rate, "n": 8}}, "notes": {"color": {"rate": 1.0, "n": 8}}}}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_shipped_card_is_what_its_measurements_and_its_log_say(name):
    folder = CHECKPOINTS[name]
    card = of_sounds.card if name.startswith("pictosound") else of_pictures.card
    assert (folder / "README.md").read_text() == card(folder)


def test_a_table_shows_the_shipped_seed_and_the_range_over_all():
    table = cards.accuracy_table({0: rated(0.5), 1: rated(0.25), 2: rated(0.75)}, {"image": "own image", "notes": "words"})
    assert table.splitlines()[0] == "| question | n | own image | words |"
    assert table.splitlines()[2] == "| color | 8 | 50.0 % (25.0 to 75.0) | 100.0 % (100.0 to 100.0) |"


def test_one_seed_has_no_range():
    assert cards.percent({0: 0.5}) == "50.0 %"


def test_a_stage_shows_its_last_loss_and_its_time_over_all_seeds(tmp_path):
    logs = {seed: cards.read_log(run(tmp_path / str(seed), seed, loss=seed / 2, minutes=1 + seed))[seed] for seed in (0, 1)}
    last = cards.stage_table(logs, ["tower"], {"tower": "the tower"}).splitlines()[-1]
    assert last == "| tower | the tower | 5 | 2 | 1.0 (1.0 to 2.0) | 1 | 0.000 (0.000 to 0.500) |"


def test_seeds_that_were_measured_on_the_same_examples_stay(tmp_path):
    shipped = run(tmp_path / "sound", 0)
    runs = {seed: run(tmp_path / f"run-{seed}" / "sound", seed).parent for seed in (1, 2)}
    found = {shipped: rated(0.5), runs[1] / "sound": rated(0.25), runs[2] / "sound": rated(0.75)}
    for seed in (1, 2):
        cards.measure_seeds(shipped, [runs[seed]], found.__getitem__, ABOUT)
    assert cards.read_measurements(shipped) == {**ABOUT, "measured": {0: rated(0.5), 1: rated(0.25), 2: rated(0.75)}}
    assert list(cards.read_log(shipped)) == [0, 1, 2]
    cards.measure_seeds(shipped, [], found.__getitem__, {**ABOUT, "seed": 1})
    assert list(cards.read_measurements(shipped)["measured"]) == [0]
