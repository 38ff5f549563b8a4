"""What several exercises start from: the shipped models, loaded once."""

from functools import cache

from mmlens.model import HookedMLLM


@cache
def organism(name: str) -> HookedMLLM:
    """Return a shipped model of our own: what a reader did to theirs does not reach it."""
    return HookedMLLM.from_pretrained(name)
