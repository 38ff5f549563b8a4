"""What the steps of a tour share once the model has answered."""

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Bool, Int
from torch import Tensor

from mmlens.inputs import Inputs
from mmlens.results import Result
from mmlens.tour.case import Case


@dataclass(frozen=True)
class Found:
    """The model's inputs up to the word of its answer, that word and its first token, and where results are saved."""

    case: Case
    inputs: Inputs
    word: str
    token: Int[Tensor, " found"]
    new: Int[Tensor, " new"]
    on_object: Bool[Tensor, "batch pos"] | None
    seed: int
    draws: int
    folder: Path

    def save(self, name: str, result: Result) -> None:
        """Save a step's result beside the page."""
        result.save(self.folder / name)


def at(inputs: Inputs, mask: Bool[Tensor, "height width"] | None) -> Bool[Tensor, "batch pos"] | None:
    """Return the image positions that touch the mask, None where there is no mask or positions have no place."""
    return None if mask is None or inputs.grids[0][0] is None else inputs.overlap(mask) > 0
