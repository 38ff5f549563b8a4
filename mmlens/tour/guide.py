"""The tour itself: its steps in order, and the page that they end in."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from mmlens import metrics, plot
from mmlens.analysis import (
    Attribution,
    ablation_curve,
    activation_patching,
    decode,
    grad_x_activation,
    logit_lens,
    receptive_field,
)
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.neurons import Neurons
from mmlens.results import Provenance, Result
from mmlens.targets import answer_word, continued
from mmlens.tour import sentences
from mmlens.tour.case import Case, case_of, is_organism, unknown_words
from mmlens.tour.page import Section, page
from mmlens.tour.switching import NEW_TOKENS, Rate, SwitchedOff, forced, numbers_to_try, ranked, rate, switch_off

SHOWN, COMPARED = 6, 20
STEPS = ("positions", "logit lens", "neurons", "ablation", "patching", "switching off", "other scenes")


@dataclass(frozen=True)
class Tour:
    """What a tour found: the answer, the main sentence, the rate beside it, and where the page lies."""

    answer: str
    sentence: str
    beside: str
    path: Path
    switched: SwitchedOff | None
    rate: Rate | None


@dataclass(frozen=True)
class Found:
    """What the steps share once the model has answered: its inputs up to the word, that word and its first token, if any."""

    case: Case
    inputs: Inputs
    word: str
    token: Int[Tensor, " found"]
    new: Int[Tensor, " new"]
    on_object: Bool[Tensor, "batch pos"] | None
    seed: int
    draws: int
    folder: Path

    def save(self, name: str, result: Result) -> None:
        """Save a step's result beside the page."""
        result.save(self.folder / name)


def tour(
    model: HookedMLLM,
    out: str | Path,
    *,
    image: Image.Image | None = None,
    question: str | None = None,
    word: str | None = None,
    seed: int = 0,
    scenes: int = 50,
    draws: int = 10,
    progress: bool | None = False,
    command: str = "mmlens.tour.tour(...)",
) -> Tour:
    """Return what a tour found; its page is written to `out`/index.html and its results to `out`/results/.

    Without an `image` it is about a held-out Pictoworld scene. `word` is the word of the answer to trace (default: see
    `targets.answer_word`). `progress=None` shows a bar on a terminal. Raises ValueError for an empty question, for a
    word that the answer does not have, and for no draws.
    """
    if draws < 1:
        raise ValueError(f"every effect stands beside at least one random draw, got draws = {draws}")
    out = Path(out)
    case = case_of(model, image, question, seed)
    inputs = case.inputs(model)
    written = model.generate(inputs, max_new_tokens=NEW_TOKENS)
    new, answer = written.tokens[0, inputs.tokens.shape[1] :], written.text[0]
    if word is not None or answer:
        _, chosen = answer_word(answer, word)
        until, token = forced(model, inputs, new, word)
        new = new[: until.tokens.shape[1] - inputs.tokens.shape[1]]
    else:
        chosen, until, token = "", inputs, new[:0]
    (out / "results").mkdir(parents=True, exist_ok=True)
    found = Found(
        case=case,
        inputs=until,
        word=chosen,
        token=token,
        new=new,
        on_object=_at(until, case.mask),
        seed=seed,
        draws=draws,
        folder=out / "results",
    )
    sections, switched, frequency = [], None, None
    with tqdm(total=len(STEPS), disable=None if progress is None else not progress, leave=False) as bar:

        def step(name: str) -> None:
            bar.set_description(name)
            bar.update()

        step(STEPS[0])
        sections.append(_positions(found))
        step(STEPS[1])
        sections.append(_lens(model, found))
        if answer:
            step(STEPS[2])
            scored = grad_x_activation(model, until, token)
            neurons = ranked(model, scored)
            sections.append(_neurons(model, found, scored, neurons))
            step(STEPS[3])
            sections.append(_ablation(model, found, neurons))
            step(STEPS[4])
            sections.append(_patching(model, found))
            step(STEPS[5])
            switched = switch_off(model, inputs, neurons, numbers_to_try(neurons), draws=draws, seed=seed)
            found.save("switched_off", switched)
            step(STEPS[6])
            if case.scene is not None and is_organism(model) and scenes:
                tried = switched.number or int(switched.tried[-1])
                frequency = rate(model, tried, scenes=scenes, seed=seed, but=case.scene.seed[2])
                found.save("rate", frequency)
            sections.append(sentences.switched(switched, frequency, chosen))
    sentence = switched.sentence() if switched else sentences.SILENT
    beside = sentences.beside(case, switched, frequency)
    path = out / "index.html"
    text = page(
        title=f"A tour of {model.name}",
        picture=case.image,
        asked=case.prompt,
        answer=answer,
        sentence=sentence,
        beside=beside,
        sections=sections,
        provenance=_provenance(model, inputs, case, seed, command),
    )
    path.write_text(text, encoding="utf-8")
    return Tour(answer, sentence, beside, path, switched, frequency)


def _positions(found: Found) -> Section:
    image = found.inputs.mask("image")
    return Section(
        "What does the model see?",
        sentences.positions(found.inputs, found.case),
        plot.positions(found.inputs),
        f"The picture with a grid of {int(image.sum())} numbered image positions",
        "Each square becomes one position of the stream that the language model reads; its number counts image positions.",
    )


def _lens(model: HookedMLLM, found: Found) -> Section:
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


def _neurons(model: HookedMLLM, found: Found, result: Attribution, neurons: Neurons) -> Section:
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


def _ablation(model: HookedMLLM, found: Found, neurons: Neurons) -> Section:
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


def _patching(model: HookedMLLM, found: Found) -> Section:
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
    inputs, changed = found.inputs, _at(found.inputs, found.case.changed)
    image, last = inputs.mask("image"), inputs.last()
    text = {"text before the last": (inputs.mask("text", "special")) & ~last, "last position": last}
    if changed is None:
        return {"whole image": image, **text}
    rest = (image & ~changed)[0].nonzero()[:, 0]
    order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(found.seed))[: int(changed.sum())]
    other = torch.zeros_like(image)
    other[0, rest[order.to(rest.device)]] = True
    return {"object": changed, "other image positions": other, **text}


def _at(inputs: Inputs, mask: Bool[Tensor, "height width"] | None) -> Bool[Tensor, "batch pos"] | None:
    """Return the image positions that touch the mask, None where there is no mask or positions have no place."""
    return None if mask is None or inputs.grids[0][0] is None else inputs.overlap(mask) > 0


def _provenance(model: HookedMLLM, inputs: Inputs, case: Case, seed: int, command: str) -> dict[str, str]:
    record = Provenance.record(model, (inputs.digest(),), seed=seed)
    unknown = unknown_words(model, case.prompt)
    return {
        "model": f"{record.model}" + (f", revision {record.revision}" if record.revision else ""),
        "weights": f"{record.weights} (SHA-256, first 16 digits)",
        "picture": f"{case.source}, {case.image.size[0]} x {case.image.size[1]} pixels",
        "prompt as the model reads it": inputs.text[0],
        **({"words that this model has no token for": ", ".join(unknown)} if unknown else {}),
        "inputs": f"{record.inputs[0]} (SHA-256, first 16 digits)",
        "seed": str(seed),
        "versions": ", ".join(f"{name} {number}" for name, number in record.versions.items()),
        "made": record.created,
        "command": command,
    }
