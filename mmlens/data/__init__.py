"""Examples that a sweep runs over."""

from mmlens.data.example import Example

__all__ = ["Example"]
