"""Exercises of 03_multimodal_neurons and 04_find_and_edit: what neurons write, where they fire, what they carry."""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from mmlens.analysis import decode, grad_x_activation, logit_contribution, receptive_field
from mmlens.hooks import ablate
from mmlens.inputs import Inputs
from mmlens.neurons import Neurons, label, top_k
from mmlens.organisms import pictoworld
from mmlens.targets import Targets, continued, nouns
from mmlens.teaching.exercise import compared, exercise, told_apart
from mmlens.teaching.reading import neuron, number, whole
from mmlens.teaching.shared import organism


@cache
def captioned() -> tuple[pictoworld.Scene, Inputs, Inputs, Targets, Neurons, Float[Tensor, "layer unit"]]:
    """Return the scene with a star, prompt, captioned prompt, nouns, the star's hundred neurons and all activations."""
    model, scene = organism("pictoworld-frozen"), pictoworld.scenes("held_out", n=24, seed=11)[15]
    prompt = model.to_inputs(pictoworld.CAPTION_PROMPT, images=scene.image)
    captioned_, found = nouns(model, prompt, model.generate(prompt, max_new_tokens=32))
    targets = found.first()
    before = captioned_.tokens[0, prompt.tokens.shape[1] : int(targets.position[0]) + 1]
    scored = grad_x_activation(model, continued(prompt, before, model=model), targets.token[:1])
    top, activation = top_k(scored.scores[0], 100, widths=model.widths), scored.activation
    assert activation is not None  # no sum over positions was asked for
    return scene, prompt, captioned_, targets, top, activation[0]


@exercise("03/below-zero", neuron)
def below_zero(given: tuple[int, int]) -> str | None:
    """Name a neuron from the sixth to the twentieth of `top` (`top[5:20]`) that has `star` among its ten words when it is
    read with the sign of its activation, and has not when it is read without.
    """
    *_, top, fired = captioned()
    own = [(layer, unit) for _, layer, unit in top[5:20]]
    if given not in own:
        before = given in [(layer, unit) for _, layer, unit in top[:5]]
        return "that is one of the first five" if before else "it is not among these neurons; see top[5:20].labels()"
    one = top[[5 + own.index(given)]]
    signed, unsigned = (
        "star" in {word.strip() for word in decode(organism("pictoworld-frozen"), one, sign=sign).words[0]}
        for sign in (fired[one.layer, one.unit], None)
    )
    if not signed:
        acts = "negative" if fired[given] < 0 else "positive"
        return f"star is not among its ten words, and its activation, which is {acts}, is the sign they are read with"
    return "it writes star either way: its activation is positive" if unsigned else None


@exercise("03/best-field", neuron)
def best_field(given: tuple[int, int]) -> str | None:
    """Which neuron among the first twenty of `top` overlaps best with the star, by the IoU of its receptive field? `field`
    has the neurons of `top` in their order.
    """
    scene, prompt, _, _, top, fired = captioned()
    star = torch.from_numpy(next(thing.mask for thing in scene.objects if thing.noun == "star"))
    signed, unsigned = (
        receptive_field(organism("pictoworld-frozen"), prompt, top, sign=sign).iou(star)
        for sign in (fired[top.layer, top.unit], None)
    )
    mistakes = {
        "that is the best of all hundred: the first twenty are asked for": [_named(top, int(signed.argmax()))],
        "that is the best without the sign: the notebook's field has sign=": [_named(top, int(unsigned[:20].argmax()))],
        "that one overlaps least": [_named(top, int(signed[:20].argmin()))],
        "that is the one of the highest score: order is by score, not by overlap": [_named(top, 0)],
    }
    return told_apart(given, _named(top, int(signed[:20].argmax())), mistakes, "field.iou(star) has one value a neuron")


def _named(neurons: Neurons, place: int) -> tuple[int, int]:
    """Return (layer, unit) of the neuron at a place."""
    return int(neurons.layer[place]), int(neurons.unit[place])


@exercise("03/at-the-picture", number)
def at_the_picture(given: float) -> str | None:
    """With ten neurons off, P(star) hardly falls. Does the logit? Hold the first ten of `top` at 0 at the image positions of
    `whole`: by how much does the logit of `star` change, where it is predicted (`targets.position[0]`)?
    """
    _, _, inputs, targets, top, _ = captioned()
    model, place, token = organism("pictoworld-frozen"), int(targets.position[0]), int(targets.token[0])
    masks = {name: inputs.mask(name) for name in ("image", "text", "all")}
    clean, hidden = (
        model.run_with_hooks(inputs, fwd_hooks=hooks)[0] for hooks in ([], ablate(top[:10], where=masks["image"]))
    )
    change = (hidden - clean)[:, token]
    others = {
        name: (model.run_with_hooks(inputs, fwd_hooks=ablate(neurons, where=masks[where])) - clean)[0, place, token].item()
        for name, neurons, where in (("all", top[:10], "all"), ("text", top[:10], "text"), ("hundred", top, "image"))
    }
    mistakes = {
        "these neurons were held at 0 everywhere: where= keeps it to the image": others["all"],
        "these neurons were held at 0 at text positions": others["text"],
        "that is with all hundred off: top[:10]": others["hundred"],
        "that is one position too late, where star stands: the position before predicts it": change[place + 1].item(),
        "that is the logit without them: subtract what it was": hidden[place, token].item(),
        "that is the log-probability: take the logit, before the softmax": (
            (hidden.log_softmax(-1) - clean.log_softmax(-1))[place, token].item()
        ),
        "that is the probability: take the logit, before the softmax": (
            (hidden.softmax(-1) - clean.softmax(-1))[place, token].item()
        ),
    }
    otherwise = "logits[0, position, token], after less before"
    return compared(given, change[place].item(), mistakes, otherwise, within=0.004)  # everywhere differs by 1 %


@cache
def contributions(noun: str) -> tuple[Float[Tensor, "layer unit"], Float[Tensor, "layer unit"]]:
    """Return what neurons write into a noun over the eight questions about a tree, and their mean activations."""
    model = organism("pictoworld")
    own = pictoworld.mentions(pictoworld.scenes("held_out", n=200, seed=31), "tree")["by color"][:8]
    inputs = model.to_inputs([one.text for one in own], images=[one.image for one in own], answer=["the"] * len(own))
    found = logit_contribution(model, inputs, torch.full((len(own),), model.to_token(noun)))
    return found.scores.mean(0), found.activation.mean(0)


@exercise("04/below-zero", neuron)
def writes_below_zero(given: tuple[int, int]) -> str | None:
    """Three of the eight neurons that are printed have a negative activation. Which is the next one of `top`, in its order,
    that has?
    """
    scores, activation = contributions("tree")
    top = top_k(scores, 20, widths=organism("pictoworld").widths)
    acted = activation[top.layer, top.unit]
    negative = (acted < 0).nonzero()[:, 0].tolist()
    after = [place for place in negative if place >= 8]
    right, most = _named(top, after[0]), _named(top, after[int(acted[after].argmin())])
    if given != right and given in [_named(top, place) for place in negative if place < 8]:
        return "that is one of the three: the next one stands behind the first eight"
    if given != right and given == most:
        return "that one has the most negative activation; top is ordered by what they write, and the first is asked for"
    if given in [_named(top, place) for place in range(20) if place not in negative]:
        return f"the activation of {label(('language', *given))} is positive: the sign of `acted`, not of `top.score`"
    return told_apart(given, right, {}, "acted[8:] < 0, in the order of top")


@exercise("04/which-layer", whole)
def which_layer(given: int) -> str | None:
    """Add up what all neurons of a layer write into the logit of `tree`, with their signs (the mean over the eight
    questions). Which layer writes most?
    """
    scores, _ = contributions("tree")
    right = int(scores.sum(-1).argmax())
    strongest, size = int(scores.amax(-1).argmax()), int(scores.abs().sum(-1).argmax())
    mistakes = {
        "that layer has the strongest neuron, and writes most if signs are left out: add up all neurons, with their signs": [
            strongest,
            size,
        ],
        "look at the sums again, with their signs; layers are counted from 0": [right - 1, right + 2],
    }
    return told_apart(given, right, mistakes, "scored.scores is [batch, layer, unit]: mean over one axis, sum over another")


@exercise("04/another-word", number)
def another_word(given: float) -> str | None:
    """How many of these neurons would write any noun? Score all neurons on the same `inputs` for `flower`, which is in none
    of the answers, take the top twenty, and give the Jaccard index of these and `top`.
    """
    widths = organism("pictoworld").widths
    tree, flower, car = (top_k(contributions(noun)[0], 20, widths=widths) for noun in ("tree", "flower", "car"))
    mistakes = {
        "that is the share of twenty: the Jaccard index divides by the neurons in either set": len(tree & flower) / 20,
        "that is how many they share": float(len(tree & flower)),
        "that is with `car`": tree.jaccard(car),
        "a set has 1 with itself: the token is to be that of flower, in each of the eight rows": 1.0,
    }
    return compared(given, tree.jaccard(flower), mistakes, "logit_contribution(model, inputs, tokens), one token a row")
