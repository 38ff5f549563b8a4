"""Exercises at the end of each notebook, and a check that says right, not yet (with a hint) or not tried."""

from mmlens.teaching import counting, looking, sizing, tracing, writing
from mmlens.teaching.exercise import Exercise, Verdict, check, exercises

__all__ = ["Exercise", "Verdict", "check", "counting", "exercises", "looking", "sizing", "tracing", "writing"]
