"""The steps of a tour that any model and any picture have: what is seen, read, which neurons, and where it happens."""

import torch
from jaxtyping import Bool
from torch import Tensor

from mmlens import metrics, plot
from mmlens.analysis import (
    Attribution,
    ablation_curve,
    activation_patching,
    decode,
    logit_lens,
    receptive_field,
)
from mmlens.model import HookedMLLM
from mmlens.neurons import Neurons
from mmlens.targets import continued
from mmlens.tour import sentences
from mmlens.tour.found import Found, at
from mmlens.tour.page import Section
from mmlens.tour.switching import numbers_to_try

SHOWN, COMPARED = 6, 20


def positions(found: Found) -> Section:
    """Return the section on what of the picture becomes which position."""
    image = found.inputs.mask("image")
    return Section(
        "What does the model see?",
        sentences.positions(found.inputs, found.case),
        plot.positions(found.inputs),
        f"The picture with a grid of {int(image.sum())} numbered image positions",
        "Each square becomes one position of the stream that the language model reads; its number counts image positions.",
    )


def lens(model: HookedMLLM, found: Found) -> Section:
    """Return the section on what image positions read as, layer by layer."""
    inputs, word = found.inputs, found.word
    result = logit_lens(model, inputs, top_k=5, targets=found.token.tolist())
    found.save("logit_lens", result)
    target = 0 if word else None
    where = inputs.mask("image") if found.on_object is None else found.on_object
    last = result.entropy.shape[0] - 1
    wanted = [0, last, last // 2, last * 3 // 4, *range(1, last)]  # the layer that the sentence is about, and enough others
    if word:
        wanted.insert(0, sentences.clearest_layer(result, where))
    layers = sorted(list(dict.fromkeys(wanted))[:4])
    return Section(
        "What do the image positions already read as?",
        sentences.lens(result, inputs, found.on_object, word),
        plot.logit_lens(result, inputs, model, layers=layers, target=target),
        "The picture at four layers with the top word of each image position, and a curve of entropy over layers",
        "Each position's stream is read as if the model ended there (logit lens): the word that it would say next. "
        + ("Blue: the probability of the traced word. " if word else "Bright: unsure. ")
        + "Below: how unsure these readings are, by kind of position; special positions are the tokenizer's own marks.",
    )


def neurons(model: HookedMLLM, found: Found, result: Attribution, neurons: Neurons) -> Section:
    """Return the section on the neurons of the highest scores: where they fire and what they write."""
    inputs, top = found.inputs, neurons[:COMPARED]
    found.save("attribution", result)
    assert result.activation is not None, "reduce='max' keeps activations"
    control = top.random_like(seed=found.seed)
    fired = [torch.stack([result.activation[0, layer, unit] for _, layer, unit in group]) for group in (top, control)]
    decoding = decode(model, top[:SHOWN], k=5, sign=fired[0][:SHOWN])
    field = receptive_field(model, inputs, top, sign=fired[0])
    other = receptive_field(model, inputs, control, sign=fired[1])
    found.save("decoding", decoding)
    found.save("receptive_field", field)
    found.save("receptive_field_random", other)
    mask = found.case.mask
    return Section(
        f'Which neurons does "{found.word}" depend on?',
        sentences.neurons(decoding, field, other, mask, found.word),
        plot.neurons(decoding, field, found.case.image, mask, control=other),
        f"The picture {min(SHOWN, len(top))} times, each with where one neuron fires, its label, score and words",
        "L3.u120 is unit 120 of layer 3. Score: activation times gradient of the word's logit, at the image position where "
        "that is largest. Writes: the words whose logits the neuron raises most when it fires as it did there. Blue: it "
        "fires as it did there, red: against; black edge: its strongest 5 % of the picture"
        + ("; cyan edge: the object. IoU: overlap of the two." if mask is not None else "."),
    )


def ablation(model: HookedMLLM, found: Found, neurons: Neurons) -> Section:
    """Return the section on how the word's probability falls without more and more of them."""
    ks = [0, *numbers_to_try(neurons)]
    result = ablation_curve(model, found.inputs, found.token, neurons, ks=ks, draws=found.draws, seed=found.seed)
    found.save("ablation_curve", result)
    return Section(
        f'How many of them carry "{found.word}"?',
        sentences.ablation(result, found.word),
        plot.ablation_curve(result, target=found.word),
        f'Probability of "{found.word}" against the number of neurons switched off, with random draws',
        "Switched off: held at 0 at all image positions. Random: as many other neurons of the same layers.",
        sentences.ablation_table(result),
    )


def patching(model: HookedMLLM, found: Found) -> Section:
    """Return the section on which positions of the stream restore the answer, layer by layer."""
    case, clean = found.case, found.inputs
    corrupted = continued(case.inputs(model, other=True), found.new, model=model)
    says = model(corrupted)[:, -1].argmax(-1).detach().cpu()
    same = bool((says == found.token.cpu()).all())

    def metric(logits: Tensor) -> Tensor:
        token = found.token.to(logits.device)
        return metrics.log_prob(logits, token) if same else metrics.logit_diff(logits, token, says.to(logits.device))

    sites = _sites(found)
    result = activation_patching(model, clean=clean, corrupted=corrupted, metric=metric, sites=sites)
    found.save("patching", result)
    instead = model.to_str_tokens(says)[0].strip()
    differs = sentences.differs(result)
    return Section(
        "Where in the model does the picture become the answer?",
        sentences.patching(result, case, found.word, instead, same=same),
        plot.patching(result, counts={name: int(site.sum()) for name, site in sites.items()}) if differs else None,
        "A heat map of how much of the answer is restored, by layer and by positions",
        f"The model looks at {case.other_name}, but gets the stream of the first picture at some positions before some "
        "layer (activation patching). 1: it answers as for the first picture; 0: nothing is restored.",
    )


def _sites(found: Found) -> dict[str, Bool[Tensor, "batch pos"]]:
    """Return the object and as many other image positions (or the whole image), the text before the last, and the last."""
    inputs, changed = found.inputs, at(found.inputs, found.case.changed)
    image, last = inputs.mask("image"), inputs.last()
    text = {"text before the last": (inputs.mask("text", "special")) & ~last, "last position": last}
    if changed is None:
        return {"whole image": image, **text}
    rest = (image & ~changed)[0].nonzero()[:, 0]
    order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(found.seed))[: int(changed.sum())]
    other = torch.zeros_like(image)
    other[0, rest[order.to(rest.device)]] = True
    return {"object": changed, "other image positions": other, **text}
