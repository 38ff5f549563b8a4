"""Examples that a sweep runs over, and how published benchmarks become them."""

from mmlens.data.benchmark import Benchmark
from mmlens.data.benchmarks import BENCHMARKS, table
from mmlens.data.example import Example
from mmlens.data.reading import Examples, Stream, load
from mmlens.data.scenes import caption_examples, noun_examples, question_examples, scene_objects

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "Example",
    "Examples",
    "Stream",
    "caption_examples",
    "load",
    "noun_examples",
    "question_examples",
    "scene_objects",
    "table",
]
