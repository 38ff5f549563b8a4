"""Small trained models with known ground truth, which ship with the package."""

from pathlib import Path

CHECKPOINTS: dict[str, Path] = {
    name: Path(__file__).parent / world / "checkpoints" / name
    for world in ("pictoworld", "pictosound")
    for name in (world, f"{world}-frozen")
}
"""The folder of every checkpoint, by name; each loads with transformers' from_pretrained."""

__all__ = ["CHECKPOINTS"]
