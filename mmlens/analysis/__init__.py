"""One file, one idea: an analysis takes a model and inputs and returns one frozen result."""

from mmlens.analysis.ablation import AblationConditions, AblationCurve, ablation_conditions, ablation_curve
from mmlens.analysis.agreement import Agreement, agreement
from mmlens.analysis.attention_rows import AttentionRows, attention_rows
from mmlens.analysis.attention_sinks import AttentionSinks, attention_sinks
from mmlens.analysis.attribution import Attribution, grad_x_activation
from mmlens.analysis.attribution_patching import attribution_patching
from mmlens.analysis.baselines import activation_score, random_score
from mmlens.analysis.causal import CausalScore, causal_score
from mmlens.analysis.circuit import Circuit, Faithfulness, Graph, circuit, faithfulness
from mmlens.analysis.class_selectivity import ClassSelectivity, class_selectivity, class_sets
from mmlens.analysis.concept_overlap import ConceptOverlap, Region, concept_overlap
from mmlens.analysis.contribution import Contribution, logit_contribution
from mmlens.analysis.convergence import Convergence, last_token_convergence
from mmlens.analysis.decoding import Decoding, decode, interpretable, word_list
from mmlens.analysis.direct_attribution import DirectAttribution, direct_logit_attribution
from mmlens.analysis.editing import Edit, fit_edit, perturb
from mmlens.analysis.fields import AverageField, ReceptiveField, receptive_field
from mmlens.analysis.geometry import (
    GroupGeometry,
    ProbingScore,
    TelomereScore,
    group_geometry,
    probing_score,
    telomere_score,
)
from mmlens.analysis.integrated_gradients import integrated_gradients
from mmlens.analysis.knock_out import KnockOutEffect, knock_out_effect
from mmlens.analysis.lens_entropy import LensEntropy, lens_entropy
from mmlens.analysis.logit_lens import LogitLens, logit_lens, turning_points
from mmlens.analysis.media_geometry import MediaGeometry, media_geometry
from mmlens.analysis.nearest_tokens import NearestTokens, nearest_tokens
from mmlens.analysis.patching import Patching, activation_patching
from mmlens.analysis.properties import (
    Overlaps,
    Ranked,
    cross_image_invariance,
    layer_histogram,
    overlap,
    region_invariance,
    shuffle_image,
    specificity,
)
from mmlens.analysis.residual import Residual, residual
from mmlens.analysis.selectivity import (
    WEIGHTINGS,
    Selection,
    Stability,
    activation_entropy,
    by_quota,
    domain_neurons,
    importance,
    low_entropy,
    modality_neurons,
    stability,
)
from mmlens.analysis.semantic import (
    SemanticSensitivity,
    as_texts,
    lexical_overlap,
    object_presence,
    semantic_sensitivity,
)
from mmlens.analysis.stream_change import StreamChange, stream_change
from mmlens.analysis.time_fields import TimeField, time_field
from mmlens.analysis.tuned_lens import TunedLens, fit_tuned_lens

__all__ = [
    "WEIGHTINGS",
    "AblationConditions",
    "AblationCurve",
    "Agreement",
    "AttentionRows",
    "AttentionSinks",
    "Attribution",
    "AverageField",
    "CausalScore",
    "Circuit",
    "ClassSelectivity",
    "ConceptOverlap",
    "Contribution",
    "Convergence",
    "Decoding",
    "DirectAttribution",
    "Edit",
    "Faithfulness",
    "Graph",
    "GroupGeometry",
    "KnockOutEffect",
    "LensEntropy",
    "LogitLens",
    "MediaGeometry",
    "NearestTokens",
    "Overlaps",
    "Patching",
    "ProbingScore",
    "Ranked",
    "ReceptiveField",
    "Region",
    "Residual",
    "Selection",
    "SemanticSensitivity",
    "Stability",
    "StreamChange",
    "TelomereScore",
    "TimeField",
    "TunedLens",
    "ablation_conditions",
    "ablation_curve",
    "activation_entropy",
    "activation_patching",
    "activation_score",
    "agreement",
    "as_texts",
    "attention_rows",
    "attention_sinks",
    "attribution_patching",
    "by_quota",
    "causal_score",
    "circuit",
    "class_selectivity",
    "class_sets",
    "concept_overlap",
    "cross_image_invariance",
    "decode",
    "direct_logit_attribution",
    "domain_neurons",
    "faithfulness",
    "fit_edit",
    "fit_tuned_lens",
    "grad_x_activation",
    "group_geometry",
    "importance",
    "integrated_gradients",
    "interpretable",
    "knock_out_effect",
    "last_token_convergence",
    "layer_histogram",
    "lens_entropy",
    "lexical_overlap",
    "logit_contribution",
    "logit_lens",
    "low_entropy",
    "media_geometry",
    "modality_neurons",
    "nearest_tokens",
    "object_presence",
    "overlap",
    "perturb",
    "probing_score",
    "random_score",
    "receptive_field",
    "region_invariance",
    "residual",
    "semantic_sensitivity",
    "shuffle_image",
    "specificity",
    "stability",
    "stream_change",
    "telomere_score",
    "time_field",
    "turning_points",
    "word_list",
]
