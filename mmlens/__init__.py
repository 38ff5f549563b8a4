"""mmlens: TransformerLens for models that also see and hear."""

from mmlens import hooks, metrics
from mmlens.cache import ActivationCache
from mmlens.inputs import Grid, Inputs, Span
from mmlens.model import Generation, HookedMLLM
from mmlens.neurons import Neurons, top_k

__all__ = [
    "ActivationCache",
    "Generation",
    "Grid",
    "HookedMLLM",
    "Inputs",
    "Neurons",
    "Span",
    "hooks",
    "metrics",
    "top_k",
]
