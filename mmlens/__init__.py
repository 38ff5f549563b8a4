"""mmlens: TransformerLens for models that also see and hear."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmlens import hooks, metrics
    from mmlens.cache import ActivationCache
    from mmlens.grid import Grid, Tiles, Timeline
    from mmlens.inputs import Inputs, Span
    from mmlens.media import Sound, Video
    from mmlens.model import Generation, HookedMLLM
    from mmlens.neurons import Neurons, top_k

__all__ = [
    "ActivationCache",
    "Generation",
    "Grid",
    "HookedMLLM",
    "Inputs",
    "Neurons",
    "Sound",
    "Span",
    "Tiles",
    "Timeline",
    "Video",
    "hooks",
    "metrics",
    "top_k",
]

_FILES = {
    "cache": ("ActivationCache",),
    "grid": ("Grid", "Tiles", "Timeline"),
    "inputs": ("Inputs", "Span"),
    "media": ("Sound", "Video"),
    "model": ("Generation", "HookedMLLM"),
    "neurons": ("Neurons", "top_k"),
}
_ROOMS = ("analysis", "doctor", "hooks", "metrics", "organisms", "plot", "testing", "verify")


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
