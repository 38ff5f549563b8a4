"""One function per result; each returns a matplotlib figure and shows nothing."""

from mmlens.plot.ablation import ablation_curve
from mmlens.plot.direct_attribution import direct_attribution
from mmlens.plot.evaluation import evaluation
from mmlens.plot.lens import logit_lens
from mmlens.plot.nearest_tokens import nearest_tokens
from mmlens.plot.neurons import neurons
from mmlens.plot.patching import patching
from mmlens.plot.positions import positions
from mmlens.plot.strongest import strongest

__all__ = [
    "ablation_curve",
    "direct_attribution",
    "evaluation",
    "logit_lens",
    "nearest_tokens",
    "neurons",
    "patching",
    "positions",
    "strongest",
]
