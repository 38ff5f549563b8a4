"""Circuits across modalities: which edges carry a difference from an image region or a sound to an answer."""

from mmlens.analysis.circuit.circuit import Circuit, circuit
from mmlens.analysis.circuit.faithfulness import Faithfulness, faithfulness
from mmlens.analysis.circuit.graph import Graph

__all__ = ["Circuit", "Faithfulness", "Graph", "circuit", "faithfulness"]
