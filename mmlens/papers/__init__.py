"""The papers as presets of our functions, and their tables beside ours: `mmlens.papers.schwettmann2023.reproduce(...)`."""

from mmlens.papers.reproduction import Reproduction, Row

__all__ = ["Reproduction", "Row"]
