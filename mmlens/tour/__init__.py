"""The guided tour: one question about one picture, traced through the model, as one offline page."""

from mmlens.tour.case import Case, case_of, is_organism
from mmlens.tour.edits import Edited
from mmlens.tour.guide import Tour, tour
from mmlens.tour.switching import Rate, SwitchedOff, numbers_to_try, rate, switch_off

__all__ = [
    "Case",
    "Edited",
    "Rate",
    "SwitchedOff",
    "Tour",
    "case_of",
    "is_organism",
    "numbers_to_try",
    "rate",
    "switch_off",
    "tour",
]
