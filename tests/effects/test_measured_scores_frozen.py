"""The same of the model whose language model and tower stayed frozen: a noun's neurons, switched off in other scenes."""

import pytest
from test_measured_scores import CONTRIBUTION, GRADIENT, INTEGRATED, SCORES, fair, falls_much_more, reported, survival


@pytest.fixture(scope="module")
def frozen(organisms, expectations):
    """Return what became of the frozen model's answers, measured once."""
    return fair(organisms["pictoworld-frozen"], "pictoworld-frozen", expectations["scores"])


def test_what_switching_off_does_is_reported(frozen, report, expectations):
    reported(frozen, report, expectations)


@pytest.mark.parametrize("score", SCORES)
def test_the_logit_falls_much_more_than_without_other_neurons(frozen, expectations, score):
    falls_much_more(frozen, score, expectations)


@pytest.mark.parametrize("score", [CONTRIBUTION, GRADIENT, INTEGRATED])
def test_fewer_answers_survive_than_without_random_neurons(frozen, report, expectations, score):
    assert survival(frozen, score, report, expectations)[2] < 0
