"""Tasks under interventions: what a model scores with neurons held or anything else hooked, beside random controls."""

from mmlens.evaluation.ablation import Ablation
from mmlens.evaluation.editing import expected_after
from mmlens.evaluation.result import Evaluation
from mmlens.evaluation.run import evaluate

__all__ = ["Ablation", "Evaluation", "evaluate", "expected_after"]
