import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import entropy

from mmlens import metrics


@pytest.fixture
def logits():
    return torch.randn(4, 3, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3


def test_log_probability_is_that_of_the_last_position(logits):
    token = torch.tensor([0, 10, 3, 3])
    expected = log_softmax(logits[:, -1].numpy(), axis=-1)[np.arange(4), token.numpy()]
    np.testing.assert_allclose(metrics.log_prob(logits, token).numpy(), expected, rtol=1e-12)


def test_the_logit_difference_changes_sign_with_the_tokens(logits):
    correct, wrong = torch.tensor([1, 2, 3, 4]), torch.tensor([5, 6, 7, 8])
    last = logits[:, -1].numpy()
    expected = last[np.arange(4), correct.numpy()] - last[np.arange(4), wrong.numpy()]
    np.testing.assert_allclose(metrics.logit_diff(logits, correct, wrong).numpy(), expected, rtol=1e-12)
    assert torch.equal(metrics.logit_diff(logits, wrong, correct), -metrics.logit_diff(logits, correct, wrong))


def test_divergence_equals_the_relative_entropy_and_is_zero_only_for_equals(logits):
    other = logits.flip(1)
    p, q = (np.exp(log_softmax(x[:, -1].numpy(), axis=-1)) for x in (other, logits))
    np.testing.assert_allclose(metrics.kl_divergence(logits, other).numpy(), entropy(p, q, axis=-1), rtol=1e-9)
    assert metrics.kl_divergence(logits, logits).abs().max() < 1e-12
    assert metrics.kl_divergence(logits, other).min() > 1e-3


def test_bfloat16_logits_are_compared_in_float32(logits):
    token = torch.tensor([0, 10, 3, 3])
    assert metrics.log_prob(logits.bfloat16(), token).dtype == torch.float32
