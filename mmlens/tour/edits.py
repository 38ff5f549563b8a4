"""An edit that makes the model say another word about the picture, what else it changes, and its way back."""

from dataclasses import dataclass

import torch

from mmlens import plot
from mmlens.analysis import Edit, fit_edit, logit_contribution
from mmlens.data import Example
from mmlens.evaluation import Evaluation, evaluate, expected_after
from mmlens.model import HookedMLLM
from mmlens.neurons import top_k
from mmlens.organisms import pictoworld
from mmlens.results import Provenance, Result
from mmlens.tour.found import Found
from mmlens.tour.page import Section
from mmlens.tour.switching import NEW_TOKENS

SCENES, FITTED, LEAST, EACH = 400, 6, 3, 6  # drawn; fitted on; the fewest to fit on; tried of each kind
NEURONS, STEPS = 20, 30
HEADING = "Can the answer be edited?"
KINDS = {
    "by color": "asked by color, about the word's object",
    "by place": "asked by place, about it",
    "in captions": "captions of scenes with it",
    "beside it by color": "other objects beside it",
    "elsewhere by color": "objects of scenes without it",
    "captions elsewhere": "captions of scenes without it",
}


@dataclass(frozen=True, kw_only=True, repr=False)
class Edited(Result):
    """The answer about the picture under the edit, under one of random neurons, in the weights, and once undone.

    `changed` counts the model's weights, `tensors` in all, that are not what they were: with the edit in them, and once
    undone.
    """

    answer: str
    edited: str
    random: str
    written: str
    undone: str
    tensors: int
    changed: tuple[int, int]


def section(model: HookedMLLM, found: Found, pair: pictoworld.Pair, answer: str) -> Section:
    """Return the section on an edit from the answer's word to the noun of the pair's other scene."""
    source, target = found.word, pair.corrupted.objects[pair.index].noun
    prompts = pictoworld.mentions(pictoworld.scenes(n=SCENES, seed=found.seed + 1), source)
    own = prompts.get("by color", [])[:FITTED]
    if len(own) < LEAST:
        return Section(HEADING, f'Not tried: of {SCENES} other scenes only {len(own)} have a "{source}" to fit it on.')
    inputs = model.to_inputs(
        [one.text for one in own],
        images=[one.image for one in own],
        answer=[one.answer.rpartition(" ")[0] for one in own],
    )
    scores = logit_contribution(model, inputs, torch.full((len(own),), model.to_token(source))).scores.mean(0)
    neurons = top_k(scores, NEURONS, widths=model.widths)
    fitted = fit_edit(model, inputs, source, target, neurons, steps=STEPS)
    control = fit_edit(model, inputs, source, target, neurons.random_like(seed=found.seed), steps=fitted.steps)
    behind = own[-1].scene
    examples = [
        Example(one.text, images=one.image, answers=(one.answer,), label=label)
        for kind, label in KINDS.items()
        for one in [one for one in prompts.get(kind, []) if one.scene > behind][:EACH]
    ]
    tried = _tried(model, examples, fitted, control)
    result = edited(model, found, fitted, control, answer)
    for name, one in {"edit": fitted, "edit_random": control, "edit_tried": tried, "edited": result}.items():
        found.save(name, one)
    return Section(
        HEADING,
        f"{sentence(fitted, result)} {elsewhere(tried, source)} {back(result)}",
        plot.edit(fitted, control=control),
        f"How likely {source} and {target} are after each step of the fit, and the terms of its loss",
        f"Only the output rows of {len(fitted.neurons)} neurons are changed, those that write most into the logit of "
        f'"{source}" over the scenes of the fit. Grey: as many random neurons of the same layers, as many steps. The table '
        f'counts answers that come out as they should: "{target}" where the model says "{source}", all else unchanged.',
        table(tried),
    )


def _tried(model: HookedMLLM, examples: list[Example], fitted: Edit, control: Edit) -> Evaluation:
    """Return whether answers about other scenes come out as after a perfect edit, with each edit and without."""
    expected = expected_after(model, examples, *fitted.words, batch_size=12, max_new_tokens=NEW_TOKENS)
    arms = {"edit": fitted.hooks(model), "random": control.hooks(model)}
    return evaluate(model, expected, "exact_match", arms, batch_size=12, max_new_tokens=NEW_TOKENS, progress=False)


def edited(model: HookedMLLM, found: Found, fitted: Edit, control: Edit, answer: str) -> Edited:
    """Return what the model answers about the picture with the edit in every form, and what is left of it in the end."""
    inputs = found.case.inputs(model)
    before = {name: value.detach().clone() for name, value in model.hf_model.named_parameters()}

    def says(one: Edit | None = None) -> str:
        return model.generate(inputs, max_new_tokens=NEW_TOKENS, fwd_hooks=one.hooks(model) if one else []).text[0]

    def changed() -> int:
        return sum(not torch.equal(value, before[name]) for name, value in model.hf_model.named_parameters())

    by_hooks, random = says(fitted), says(control)
    with fitted.applied(model):
        written, differ = says(), changed()
    return Edited(
        answer=answer,
        edited=by_hooks,
        random=random,
        written=written,
        undone=says(),
        tensors=len(before),
        changed=(differ, changed()),
        provenance=Provenance.record(model, (inputs.digest(),), seed=found.seed, analysis="edited"),
    )


def sentence(fitted: Edit, result: Edited) -> str:
    """Return what the edit does to the answer about the picture, beside the random one."""
    rows, target = fitted.nll.shape[1], fitted.words[1]
    share = f'"{target}" has more than {fitted.provenance.parameters["stop"]:.0%} in each'
    reached = f"until {share}" if fitted.reached else f"the most that were tried, not enough that {share}"
    does = f'turns the answer about this picture from "{result.answer}" into "{result.edited}"'
    if result.edited == result.answer:
        does = f'leaves the answer about this picture as it is, "{result.answer}": it did not work here'
    return (
        f"Fitted on {rows} other scenes in {fitted.steps} steps, {reached}, an edit of {len(fitted.neurons)} neurons {does} "
        f'(as many steps on random neurons: "{result.random}").'
    )


def elsewhere(tried: Evaluation, source: str) -> str:
    """Return how many other answers follow, and how many of those that should stay do."""
    unedited, edit, random = (tried.scores[tried.arms.index(arm)] for arm in ("baseline", "edit", "random"))
    stay, follow = unedited == 1, unedited == 0
    return (
        f'On later scenes, {int(edit[follow].sum())} of {int(follow.sum())} other answers with "{source}" follow (random '
        f"neurons: {int(random[follow].sum())}), and of {int(stay.sum())} answers without it {int(edit[stay].sum())} stay "
        f"as they were (random neurons: {int(random[stay].sum())})."
    )


def back(result: Edited) -> str:
    """Return what the edit is in the weights, and that it is gone once undone, or what is left."""
    differ, left = result.changed
    end = "all are bit by bit as they were" if not left else f"{left} are not what they were"
    return (
        f'Put into the weights it changes {differ} of {result.tensors} tensors, and the answer is "{result.written}"; '
        f'undone, {end}, and the answer is "{result.undone}".'
    )


def table(tried: Evaluation) -> list[list[str]]:
    """Return how many answers of each kind come out as they should."""
    rows = [["answers as they should be", "n", "the edit", "random neurons"]]
    for task in dict.fromkeys(tried.tasks):
        own = torch.tensor([one == task for one in tried.tasks])
        right = [str(int(tried.scores[tried.arms.index(arm), own].sum())) for arm in ("edit", "random")]
        rows.append([task, str(int(own.sum())), *right])
    return rows
