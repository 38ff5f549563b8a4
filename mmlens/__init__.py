"""mmlens: TransformerLens for models that also see and hear."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmlens import data, hooks, metrics, stats
    from mmlens.cache import ActivationCache
    from mmlens.data import Example
    from mmlens.evaluation import Ablation, Evaluation, evaluate
    from mmlens.grid import Grid, Tiles, Timeline
    from mmlens.inputs import Inputs, Span
    from mmlens.media import Sound, Video
    from mmlens.model import Generation, HookedMLLM
    from mmlens.neurons import Neurons, top_k
    from mmlens.stats import SampleStats, TokenStats, TopExamples
    from mmlens.sweeps import Sweep, sweep

__all__ = [
    "Ablation",
    "ActivationCache",
    "Evaluation",
    "Example",
    "Generation",
    "Grid",
    "HookedMLLM",
    "Inputs",
    "Neurons",
    "SampleStats",
    "Sound",
    "Span",
    "Sweep",
    "Tiles",
    "Timeline",
    "TokenStats",
    "TopExamples",
    "Video",
    "data",
    "evaluate",
    "hooks",
    "metrics",
    "stats",
    "sweep",
    "top_k",
]

_FILES = {
    "cache": ("ActivationCache",),
    "data": ("Example",),
    "evaluation": ("Ablation", "Evaluation", "evaluate"),
    "grid": ("Grid", "Tiles", "Timeline"),
    "inputs": ("Inputs", "Span"),
    "media": ("Sound", "Video"),
    "model": ("Generation", "HookedMLLM"),
    "neurons": ("Neurons", "top_k"),
    "stats": ("SampleStats", "TokenStats", "TopExamples"),
    "sweeps": ("Sweep", "sweep"),
}
_ROOMS = "analysis data doctor hooks metrics organisms papers plot stats teaching testing verify".split()


def __getattr__(name: str) -> Any:
    """Return what is asked for, imported now: the command shows its help without waiting seconds for torch."""
    for file, names in _FILES.items():
        if name in names:
            return getattr(import_module(f"mmlens.{file}"), name)
    if name in _ROOMS:
        return import_module(f"mmlens.{name}")
    raise AttributeError(f"module 'mmlens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *(room for room in _ROOMS if room not in __all__)]
