"""The papers as presets of our functions, and their tables beside ours: `mmlens.papers.schwettmann2023.reproduce(...)`."""

from mmlens.papers import pan2024, schwettmann2023
from mmlens.papers.reproduction import Reproduction, Row
from mmlens.papers.shown import Shown, from_coco, from_pictoworld

__all__ = ["Reproduction", "Row", "Shown", "from_coco", "from_pictoworld", "pan2024", "schwettmann2023"]
