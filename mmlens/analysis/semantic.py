"""Do the words of a picture's neurons say what is on the picture? Any scorer, the best neuron, and shuffled pairs."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmlens.analysis.decoding import Decoding
from mmlens.metrics import chair
from mmlens.results import Storable

Scorer = Callable[[str, Any], float]


@dataclass(frozen=True, eq=False)
class SemanticSensitivity(Storable):
    """The score of each picture's best neuron, and the same with the words of another picture's neurons."""

    scorer: str
    best: Float[Tensor, " picture"]
    neuron: tuple[int, ...]
    shuffled: Float[Tensor, "shuffle picture"]

    def __repr__(self) -> str:
        shown = f"{self.mean:.3f} over {len(self.best)} pictures, {self.shuffled_mean:.3f} where they are shuffled"
        return f"SemanticSensitivity({self.scorer}: {shown})"

    @property
    def mean(self) -> float:
        """The mean over pictures of the best neuron's score."""
        return float(self.best.mean())

    @property
    def shuffled_mean(self) -> float:
        """The same mean where pictures and neurons are paired at random."""
        return float(self.shuffled.mean())


def semantic_sensitivity(
    texts: Sequence[Sequence[str]],
    references: Sequence[Any],
    scorer: Scorer,
    *,
    shuffles: int = 10,
    seed: int = 0,
) -> SemanticSensitivity:
    """Return how well the words of each picture's neurons fit it: the best neuron's score, beside that of shuffled pairs.

    `texts[i]` are the words of the i-th picture's neurons, a string for each (`as_texts(decoding)`); `references[i]` is what
    `scorer(text, reference)` takes: the picture, its captions, its objects. In a shuffle no picture keeps its own neurons.
    Offline scorers are `lexical_overlap` and `object_presence`, which are called what they are. With weights at hand, give
    torchmetrics' own: `clip = CLIPScore(path); scorer=lambda text, image: float(clip(image, text))`, and of BERTScore's
    F1 the mean over a picture's captions. Pictures x neurons x (1 + shuffles) calls of the scorer.

    Raises ValueError for one picture, for a picture without neurons, and where texts and references differ in number.

    Source: Schwettmann et al. 2023, Table 1 (methods A9, with CLIPScore and BERTScore); Pan et al. 2024 call it semantic
    sensitivity (methods B8). Since the best of several neurons is taken, only the difference to shuffled pairs says much.
    """
    if len(texts) != len(references) or len(texts) < 2:
        raise ValueError(
            f"two pictures or more are compared, with one reference each, got {len(texts)} and {len(references)} references"
        )
    if empty := [index for index, ours in enumerate(texts) if not ours]:
        raise ValueError(f"every picture has the words of one neuron or more, picture {empty[0]} has none")
    own = [[float(scorer(text, reference)) for text in ours] for ours, reference in zip(texts, references, strict=True)]
    random = np.random.default_rng(seed)
    rows = [_deranged(random, len(texts)) for _ in range(shuffles)]
    drawn = [[max(float(scorer(text, references[i])) for text in texts[j]) for i, j in enumerate(row)] for row in rows]
    return SemanticSensitivity(
        scorer=getattr(scorer, "__name__", type(scorer).__name__),
        best=torch.tensor([max(scores) for scores in own]),
        neuron=tuple(int(np.argmax(scores)) for scores in own),
        shuffled=torch.tensor(drawn).reshape(shuffles, len(texts)),
    )


def as_texts(decoding: Decoding) -> list[str]:
    """Return each neuron's words as one string, with commas between them: "horses, racing, ponies"."""
    return [", ".join(word.strip() for word in row) for row in decoding.words]


def lexical_overlap(text: str, captions: Sequence[str]) -> float:
    """Return the fraction of a text's different words that are in any of a picture's captions, whatever their case.

    It knows nothing of meaning: "puppy" and "dog" are two words.
    """
    ours, theirs = _words(text), set[str]().union(*map(_words, captions))
    return len(ours & theirs) / max(len(ours), 1)


def object_presence(text: str, objects: Sequence[str]) -> float:
    """Return 1 where a text names one of a picture's objects, in the singular or plural, as a whole word, else 0."""
    return float(bool(objects) and bool(chair(dict.fromkeys(objects, ())).mentioned(text)))


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+(?:['’-]\w+)*", text.lower()))


def _deranged(random: np.random.Generator, n: int) -> list[int]:
    """Return an order in which nothing keeps its place: everything takes that of the next one in a random circle."""
    circle = random.permutation(n)
    order = np.empty(n, dtype=int)
    order[circle] = np.roll(circle, 1)
    return order.tolist()
