"""Statistics of neurons over a data set: accumulators that read hooks feed, batch by batch, and what they come to."""

from mmlens.stats.accumulator import Accumulator, Batch, NotFinite
from mmlens.stats.result import Statistics
from mmlens.stats.samples import SampleStats
from mmlens.stats.strongest import StrongestExamples, TopExamples
from mmlens.stats.tokens import TokenStats

__all__ = [
    "Accumulator",
    "Batch",
    "NotFinite",
    "SampleStats",
    "Statistics",
    "StrongestExamples",
    "TokenStats",
    "TopExamples",
]
