"""The papers as presets of our functions, and their tables beside ours: `mmlens.papers.schwettmann2023.reproduce(...)`."""

from mmlens.papers import huang2024, huo2024, pan2024, schwettmann2023
from mmlens.papers.reproduction import Reproduction, Row
from mmlens.papers.shown import Shown, from_coco, from_pictoworld

__all__ = [
    "Reproduction",
    "Row",
    "Shown",
    "from_coco",
    "from_pictoworld",
    "huang2024",
    "huo2024",
    "pan2024",
    "schwettmann2023",
]
