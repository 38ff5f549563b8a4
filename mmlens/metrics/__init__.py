"""What a model did, in numbers: metrics of logits, of answers, and of what an answer makes up."""

from mmlens.metrics.answers import (
    METRICS,
    anls,
    any_exact,
    bleu,
    contains_any,
    embedding_cosine,
    exact_match,
    first_letter,
    label_in,
    tfidf_cosine,
    vqa_score,
    word_accuracy,
    yes_no,
)
from mmlens.metrics.hallucination import COCO_OBJECTS, Chair, ChairScores, PopeScores, chair, pope
from mmlens.metrics.logits import kl_divergence, log_prob, logit_diff

__all__ = [
    "COCO_OBJECTS",
    "METRICS",
    "Chair",
    "ChairScores",
    "PopeScores",
    "anls",
    "any_exact",
    "bleu",
    "chair",
    "contains_any",
    "embedding_cosine",
    "exact_match",
    "first_letter",
    "kl_divergence",
    "label_in",
    "log_prob",
    "logit_diff",
    "pope",
    "tfidf_cosine",
    "vqa_score",
    "word_accuracy",
    "yes_no",
]
