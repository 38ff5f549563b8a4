"""What a tour is about: a picture, a question, the picture it is compared with, and where the object is."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.organisms import pictoworld

LARGEST = 1024  # pixels along the longer side; towers see fewer, and heat maps are kept at the picture's size
PAIRS = 50


@dataclass(frozen=True)
class Case:
    """A picture and a question, and what they are compared with.

    `other` lines up with the picture position by position; `other_name` says what it is. `mask` is true at the object that
    the question is about and `changed` wherever picture and `other` differ about it; both None where nobody knows. `pair`
    is the scenes of picture and `other`, where both are Pictoworld's.
    """

    image: Image.Image
    prompt: str
    chat: bool
    other: Image.Image
    other_name: str
    mask: Bool[Tensor, "height width"] | None
    changed: Bool[Tensor, "height width"] | None
    source: str
    scene: pictoworld.Scene | None
    pair: pictoworld.Pair | None = None

    def inputs(self, model: HookedMLLM, *, other: bool = False) -> Inputs:
        """Return the question about the picture (or about the other one) as the model reads it."""
        return model.to_inputs(self.prompt, images=self.other if other else self.image, chat=self.chat)

    def pair_of(self, word: str) -> pictoworld.Pair | None:
        """Return the pair of scenes, where there is one and the word is the noun of the object in which they differ."""
        pair = self.pair
        return pair if pair is not None and pair.clean.objects[pair.index].noun == word else None


def case_of(model: HookedMLLM, image: Image.Image | None, question: str | None, seed: int) -> Case:
    """Return the case of a user's picture, or of the first held-out scene of `seed` whose object has a colour of its own.

    Without a question, a scene is asked which object has that colour, and compared with the scene in which that object is
    another one; every other case is compared with a grey picture. Raises ValueError for an empty question.
    """
    if question is not None and not question.strip():
        raise ValueError("a question holds at least one word, got an empty one: leave --question out for the default one")
    if image is not None:
        return _grey(model, _shrunk(image), question or _default(model), None, "the picture given")
    pair = distinct_pairs(seed)[0]
    thing, changed = pair.clean.objects[pair.index], pair.corrupted.objects[pair.index]
    source = f"held-out Pictoworld scene {pair.clean.seed[2]} of seed {seed}"
    if question is not None:
        asked = {_spelled(q.text): q.object for q in pair.clean.questions}.get(_spelled(_prompt(model, question)))
        mask = next((torch.tensor(o.mask) for o in pair.clean.objects if o is asked), None)
        return _grey(model, pair.clean.image, question, mask, source, scene=pair.clean)
    mask, theirs = torch.tensor(thing.mask), torch.tensor(changed.mask)
    return Case(
        image=pair.clean.image,
        prompt=color_question(model, thing.color),
        chat=_chat(model),
        other=pair.corrupted.image,
        other_name=f"the same scene with a {changed.noun} instead of the {thing.noun}",
        mask=mask,
        changed=mask | theirs,
        source=source,
        scene=pair.clean,
        pair=pair,
    )


def distinct_pairs(seed: int) -> list[pictoworld.Pair]:
    """Return the held-out pairs of `seed` in which the changed object has a colour of its own, the tour's pair first."""
    return [pair for pair in pictoworld.pairs(n=PAIRS, seed=seed) if _alone(pair)]


def is_organism(model: HookedMLLM) -> bool:
    """Return whether this model speaks Pictoworld's language: every noun begins with a token of its own."""
    vocabulary = model.tokenizer.get_vocab()
    return all(pictoworld.first_token(noun) in vocabulary for noun in pictoworld.NOUNS)


def color_question(model: HookedMLLM, color: str) -> str:
    """Return the question which object has `color`, in the words that this model is used to."""
    return _prompt(model, f"which object is {color} ?") if is_organism(model) else f"Which object is {color}?"


def unknown_words(model: HookedMLLM, prompt: str) -> list[str]:
    """Return the words of the prompt that the tokenizer has no token for."""
    unknown = model.tokenizer.unk_token_id
    words = dict.fromkeys(prompt.split())
    return [w for w in words if unknown in model.tokenizer(w, add_special_tokens=False)["input_ids"]]


def _prompt(model: HookedMLLM, question: str) -> str:
    """Return the question with the organisms' own ending, where it is one of theirs and lacks it."""
    known = "answer :" in question or question.strip() == pictoworld.CAPTION_PROMPT
    return question if known or not is_organism(model) else f"{question.strip()} answer :"


def _spelled(text: str) -> str:
    return " ".join(text.lower().replace("?", " ? ").replace(":", " : ").split())


def _chat(model: HookedMLLM) -> bool:
    return bool(getattr(model.processor, "chat_template", None)) and not is_organism(model)


def _default(model: HookedMLLM) -> str:
    return "what kind of image is this ?" if is_organism(model) else "What is in the picture?"


def _alone(pair: pictoworld.Pair) -> bool:
    colors = [o.color for o in pair.clean.objects]
    return colors.count(pair.clean.objects[pair.index].color) == 1


def _grey(
    model: HookedMLLM,
    image: Image.Image,
    question: str,
    mask: Tensor | None,
    source: str,
    *,
    scene: pictoworld.Scene | None = None,
) -> Case:
    grey = Image.new("RGB", image.size, (128, 128, 128))
    prompt = _prompt(model, question)
    return Case(image, prompt, _chat(model), grey, "a grey picture of the same size", mask, None, source, scene)


def _shrunk(image: Image.Image) -> Image.Image:
    image = image.convert("RGB")
    if max(image.size) > LARGEST:
        image.thumbnail((LARGEST, LARGEST))
    return image
