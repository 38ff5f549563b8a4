"""How many neurons it takes to change the answer that the model writes, beside random ones, here and over many scenes."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mmlens.analysis import Attribution, grad_x_activation
from mmlens.hooks import ablate
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.neurons import Neurons, top_k
from mmlens.organisms import pictoworld
from mmlens.results import Provenance, Result
from mmlens.targets import answer_word, continued, first_token
from mmlens.tour.case import color_question

NEW_TOKENS = 24
RENAMED = {noun for nouns in pictoworld.RENAMED.values() for noun in nouns.values()}


@dataclass(frozen=True, kw_only=True, repr=False)
class SwitchedOff(Result):
    """The answers that the model writes with the first `tried[i]` neurons off at the image positions.

    `number` is the smallest tried that changes `answer`, None where none does; `random_answers` are the answers without as
    many random neurons of the same layers (without the largest number tried, where none changes it). `neurons` is how many
    neurons the language model has.
    """

    answer: str
    tried: Int[Tensor, " try"]
    answers: tuple[str, ...]
    number: int | None
    random_answers: tuple[str, ...]
    neurons: int

    @property
    def random_changed(self) -> int:
        """How many random draws change the answer."""
        return sum(other != self.answer for other in self.random_answers)

    def sentence(self) -> str:
        """Return what was found, as one sentence with its control."""
        control = f"(random: changed in {self.random_changed} of {len(self.random_answers)} draws)"
        if self.number is None:
            most = int(self.tried[-1])
            return (
                f"Without the {most} highest-scoring of {self.neurons:,} neurons, the most that were tried, "
                f'the answer is still "{self.answer}" {control}.'
            )
        new = self.answers[self.tried.tolist().index(self.number)]
        these = "this one" if self.number == 1 else f"these {self.number}"
        return (
            f"Without {these} of {self.neurons:,} neurons the answer changes from "
            f'"{self.answer}" to "{new or "(nothing)"}" {control}.'
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class Rate(Result):
    """In which of many other held-out scenes the answer changes without `number` neurons, chosen for each scene anew.

    One entry per scene: its index, whether the whole model's answer is right, whether it changes without the scene's own
    neurons and without as many random ones, and whether the object's noun depends on what kind of image it stands in.
    """

    number: int
    scene: Int[Tensor, " scene"]
    right: Bool[Tensor, " scene"]
    own: Bool[Tensor, " scene"]
    random: Bool[Tensor, " scene"]
    renamed: Bool[Tensor, " scene"]

    def sentence(self) -> str:
        """Return the rate as one sentence."""
        n, dependent, k = len(self.scene), int(self.renamed.sum()), self.number
        own, random = (f"own {k} top neurons", f"{k} random ones") if k > 1 else ("own top neuron", "a random one")
        return (
            f"Over {n} other held-out scenes, each asked which object has some color ({int(self.right.sum())} answered "
            f"correctly), the answer changes in {int(self.own.sum())} without each scene's {own}, and in "
            f"{int(self.random.sum())} without {random}; where the object's name depends on the kind of image it changes in "
            f"{int(self.own[self.renamed].sum())} of {dependent}, elsewhere in {int(self.own[~self.renamed].sum())} of "
            f"{n - dependent}."
        )


def numbers_to_try(neurons: Neurons, share: float = 0.1) -> list[int]:
    """Return 1, 2, 5, 10, ... up to `share` of all neurons, as long as every layer has as many others left for a control."""
    widths = neurons.widths["language"]
    most = min(len(neurons), max(1, int(share * sum(widths))))
    numbers: list[int] = []
    for number in (factor * 10**power for power in count() for factor in (1, 2, 5)):
        used = neurons[:number].layer.bincount(minlength=len(widths)) if number <= most else None
        if used is None or bool((2 * used > torch.tensor(widths)).any()):
            return numbers
        numbers.append(number)
    raise AssertionError("the numbers grow beyond any model")


def switch_off(
    model: HookedMLLM, inputs: Inputs, neurons: Neurons, tried: Sequence[int], *, draws: int = 10, seed: int = 0
) -> SwitchedOff:
    """Return the answers without the first of `neurons`, more and more until one changes, and the random controls."""
    where, answers, number = inputs.mask("image"), [], None
    answer = model.generate(inputs, max_new_tokens=NEW_TOKENS).text[0]
    for k in tried:
        answers.append(_without(model, inputs, neurons[:k], where))
        if answers[-1] != answer:
            number = k
            break
    chosen = neurons[: tried[len(answers) - 1]]
    controls = [chosen.random_like(seed=seed * 1000 + draw) for draw in range(draws)]
    return SwitchedOff(
        answer=answer,
        tried=torch.tensor(list(tried[: len(answers)])),
        answers=tuple(answers),
        number=number,
        random_answers=tuple(_without(model, inputs, control, where) for control in controls),
        neurons=sum(model.widths["language"]),
        provenance=Provenance.record(model, (inputs.digest(),), seed=seed, analysis="switch_off", draws=draws),
    )


def rate(model: HookedMLLM, number: int, *, scenes: int, seed: int, but: int) -> Rate:
    """Return in how many of `scenes` held-out scenes (never scene `but`) the answer changes without `number` neurons.

    Each scene is asked for the first object with a colour of its own; its neurons are ranked as the tour ranks them.
    """
    found: list[tuple[int, bool, bool, bool, bool]] = []
    for scene in pictoworld.scenes(n=2 * scenes, seed=seed):
        asked = next((q for q in scene.questions if q.kind == "color"), None)
        if asked is None or asked.object is None or scene.seed[2] == but:
            continue
        inputs = model.to_inputs(color_question(model, asked.object.color), images=scene.image)
        out = model.generate(inputs, max_new_tokens=NEW_TOKENS)
        if not out.text[0]:
            continue
        until, token = forced(model, inputs, out.tokens[0, inputs.tokens.shape[1] :])
        own = ranked(model, grad_x_activation(model, until, token))[:number]
        control = own.random_like(seed=seed * 1000 + scene.seed[2])
        where = inputs.mask("image")
        ours, random = (_without(model, inputs, chosen, where) != out.text[0] for chosen in (own, control))
        found.append((scene.seed[2], out.text[0] == asked.answer, ours, random, asked.object.noun in RENAMED))
        if len(found) == scenes:
            break
    index, *flags = torch.tensor(found).reshape(-1, 5).T
    right, ours, random, renamed = (flag.bool() for flag in flags)
    record = Provenance.record(model, (), seed=seed, analysis="rate", number=number)
    return Rate(number=number, scene=index, right=right, own=ours, random=random, renamed=renamed, provenance=record)


def forced(
    model: HookedMLLM, inputs: Inputs, new: Int[Tensor, " new"], word: str | None = None
) -> tuple[Inputs, Int[Tensor, " 1"]]:
    """Return the inputs up to the word of the answer, as the model wrote it, and that word's first token."""
    answer = model.tokenizer.decode(new.tolist(), skip_special_tokens=True).strip()
    head, chosen = answer_word(answer, word)
    index = first_token(model, new, answer.index(chosen, len(head)))
    return continued(inputs, new[:index], model=model), new[index : index + 1]


def ranked(model: HookedMLLM, scored: Attribution) -> Neurons:
    """Return the neurons by their score in the first row, as many as a tenth of all, best first."""
    return top_k(scored.scores[0], max(1, sum(model.widths["language"]) // 10), widths=model.widths)


def _without(model: HookedMLLM, inputs: Inputs, neurons: Neurons, where: Tensor) -> str:
    return model.generate(inputs, max_new_tokens=NEW_TOKENS, fwd_hooks=ablate(neurons, where=where)).text[0]
