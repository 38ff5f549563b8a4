"""A circuit of Pictoworld that the tests of its drawings share."""

from functools import partial

import torch

from mmlens.analysis.circuit import circuit
from mmlens.metrics import logit_diff
from mmlens.organisms import pictoworld

HOSTILE = "</script><img src=x onerror=alert(1)>\u2028'\"$x$"


def drawn_circuit(model, names=("object", "elsewhere", "words"), **options):
    """Return a circuit of two pairs that differ in one object, the clean inputs and the sites."""
    pairs = pictoworld.pairs(n=2)
    texts = [f"which object is {pair.clean.objects[pair.index].color} ? answer : the" for pair in pairs]
    scenes = [[pair.clean for pair in pairs], [pair.corrupted for pair in pairs]]
    clean, corrupted = (model.to_inputs(texts, images=[scene.image for scene in own]) for own in scenes)
    own = torch.zeros_like(clean.tokens, dtype=torch.bool)
    for row, pair in enumerate(pairs):
        own |= clean.overlap(torch.from_numpy(pair.clean.objects[pair.index].mask), row=row) > 0
    sites = dict(zip(names, (own, clean.mask("image") & ~own, clean.mask("text")), strict=True))
    nouns = [[scene.objects[pair.index].noun for scene, pair in zip(part, pairs, strict=True)] for part in scenes]
    right, wrong = (
        torch.tensor([model.tokenizer(n, add_special_tokens=False).input_ids[0] for n in part]) for part in nouns
    )
    metric = partial(logit_diff, correct=right, wrong=wrong)
    return circuit(model, clean=clean, corrupted=corrupted, metric=metric, sites=sites, **options), clean, sites
