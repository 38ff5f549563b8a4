"""Small trained models with known ground truth, which ship with the package."""

from pathlib import Path

_CHECKPOINTS = Path(__file__).parent / "pictoworld" / "checkpoints"

CHECKPOINTS: dict[str, Path] = {name: _CHECKPOINTS / name for name in ("pictoworld", "pictoworld-frozen")}
"""The folder of every checkpoint, by name; each loads with transformers' from_pretrained."""

__all__ = ["CHECKPOINTS"]
