"""Edits of what neurons write: fitted, put on as hooks or into the weights, undone bit by bit; and noise on such rows."""

from mmlens.analysis.editing.edit import Edit
from mmlens.analysis.editing.fitting import fit_edit
from mmlens.analysis.editing.rows import perturb

__all__ = ["Edit", "fit_edit", "perturb"]
