"""What the coordinates of a planted model's stream are called, and which words stand for what."""

from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

Seen = Literal["image", "audio"]

NOUNS = ("car", "boat", "tree", "sun")  # written by concept neurons, where they are shown
CARRIED = ("bell", "drum")  # written by neurons at the asking position, to which a head carries what is shown
EITHER = "lamp"  # written where either of two neurons fires
VEIL, SILENCED = "veil", "sun"  # where the veil is shown too, the sun is not said
SHOWN = (*NOUNS, *CARRIED, EITHER, VEIL)
DOMAINS = ("dawn", "noon", "dusk")
WHAT, WHEN, HOW = "what", "when", "how"  # asked by a prompt's last word: what is shown, in which domain, in which modality
QUESTIONS = (WHAT, WHEN, HOW)
NOTHING = "nothing"  # the answer wherever nothing speaks
BY_MODALITY = {"text": "words", "image": "picture", "audio": "sound"}
FILLERS = "a the of in on at is it here there and or red blue green left right big old new now then , . ? :".split()
VOCABULARY = (*NOUNS, *CARRIED, EITHER, *DOMAINS, *QUESTIONS, NOTHING, *BY_MODALITY.values(), *FILLERS, "user", "assistant")


def coordinates(modality: Seen, d_model: int, generator: torch.Generator) -> dict[str, int]:
    """Return the named coordinates of the stream, which lie anywhere in it; those without a name are background.

    `const` is the same everywhere and so large that norms hardly move; `bos`, `text`, `media` and `ask:*` say what a
    position is; `seen:*` and `domain:*` what it shows; `say:*` what the unembedding reads; `carry:*`, `either` and `is:*`
    stand between the two halves of a circuit.
    """
    names = ["const", "bos", "text", "media", "either"]
    names += [f"ask:{word}" for word in QUESTIONS]
    names += [f"seen:{kind}" for kind in SHOWN] + [f"domain:{name}" for name in DOMAINS]
    about = (*DOMAINS, BY_MODALITY["text"], BY_MODALITY[modality])
    names += [f"say:{word}" for word in (*NOUNS, *CARRIED, EITHER, *about)] + [f"is:{word}" for word in about]
    names += [f"carry:{kind}" for kind in (*CARRIED, VEIL)]
    places = torch.randperm(d_model, generator=generator)[: len(names)].tolist()
    return dict(zip(names, places, strict=True))


def background(layout: dict[str, int], d_model: int) -> Int[Tensor, " hidden"]:
    """Return the coordinates without a name, ascending."""
    named = set(layout.values())
    return torch.tensor([place for place in range(d_model) if place not in named])


def seen(layout: dict[str, int], kind: str) -> int:
    """Return the coordinate that says that a thing or a domain is shown."""
    return layout[f"{'domain' if kind in DOMAINS else 'seen'}:{kind}"]
