"""Batches of inputs with a label for each row of all of them, in order."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from mmlens.inputs import Inputs


def batches_of(inputs: Inputs | Iterable[Inputs], labels: Sequence[str] | None = None) -> Iterator[Inputs]:
    """Yield one or many batches, one by one. Raises ValueError where there are none, or not a label for each row."""
    rows = 0
    for batch in (inputs,) if isinstance(inputs, Inputs) else inputs:
        rows += len(batch)
        if labels is not None and rows > len(labels):
            break
        yield batch
    if not rows:
        raise ValueError("an analysis takes a batch of inputs or more, got none")
    if labels is not None and rows != len(labels):
        more = f"{rows}{' or more' * (rows > len(labels))}"
        raise ValueError(f"every row has a label, got {len(labels)} labels for {more} rows: give as many, in order")


def numbered(labels: Sequence[str]) -> tuple[tuple[str, ...], Int[Tensor, " example"]]:
    """Return the names of labels in the order in which they first come, and which of them each example has."""
    names = tuple(dict.fromkeys(labels))
    return names, torch.tensor([names.index(label) for label in labels], dtype=torch.long)
