"""Neurons by statistics: which belong to a domain (DAPE, Huo et al. 2024) and which to a modality (Huang et al. 2024)."""

from mmlens.analysis.selectivity.entropy import activation_entropy, low_entropy
from mmlens.analysis.selectivity.importance import WEIGHTINGS, importance
from mmlens.analysis.selectivity.quota import by_quota
from mmlens.analysis.selectivity.selection import Selection, domain_neurons, modality_neurons
from mmlens.analysis.selectivity.stability import Stability, stability

__all__ = [
    "WEIGHTINGS",
    "Selection",
    "Stability",
    "activation_entropy",
    "by_quota",
    "domain_neurons",
    "importance",
    "low_entropy",
    "modality_neurons",
    "stability",
]
