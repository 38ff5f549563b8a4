"""One function per result; each returns a matplotlib figure, or a page, and shows nothing."""

from mmlens.plot.ablation import ablation_conditions, ablation_curve
from mmlens.plot.agreement import agreement
from mmlens.plot.attention import attention_rows
from mmlens.plot.attention_page import attention_page
from mmlens.plot.circuit import circuit
from mmlens.plot.circuit_page import circuit_page
from mmlens.plot.circuits_vis import attention_patterns, tokens, top_k_tokens
from mmlens.plot.class_selectivity import class_selectivity
from mmlens.plot.concept_overlap import concept_overlap
from mmlens.plot.convergence import convergence
from mmlens.plot.direct_attribution import direct_attribution
from mmlens.plot.editing import edit
from mmlens.plot.evaluation import evaluation, evaluation_matrix
from mmlens.plot.faithfulness import faithfulness
from mmlens.plot.geometry import group_geometry, probing_score, telomere_score
from mmlens.plot.image_lens import image_lens
from mmlens.plot.knock_out import knock_out_effect
from mmlens.plot.lens import logit_lens
from mmlens.plot.lens_entropy import lens_entropy
from mmlens.plot.media_geometry import media_geometry
from mmlens.plot.nearest_tokens import nearest_tokens
from mmlens.plot.neuron_card import neuron_card
from mmlens.plot.neurons import neurons
from mmlens.plot.patching import patching, patching_on_picture
from mmlens.plot.positions import positions
from mmlens.plot.selectivity import overlaps, selection, stability
from mmlens.plot.stages import stages
from mmlens.plot.stream_change import stream_change
from mmlens.plot.strongest import strongest

__all__ = [
    "ablation_conditions",
    "ablation_curve",
    "agreement",
    "attention_page",
    "attention_patterns",
    "attention_rows",
    "circuit",
    "circuit_page",
    "class_selectivity",
    "concept_overlap",
    "convergence",
    "direct_attribution",
    "edit",
    "evaluation",
    "evaluation_matrix",
    "faithfulness",
    "group_geometry",
    "image_lens",
    "knock_out_effect",
    "lens_entropy",
    "logit_lens",
    "media_geometry",
    "nearest_tokens",
    "neuron_card",
    "neurons",
    "overlaps",
    "patching",
    "patching_on_picture",
    "positions",
    "probing_score",
    "selection",
    "stability",
    "stages",
    "stream_change",
    "strongest",
    "telomere_score",
    "tokens",
    "top_k_tokens",
]
