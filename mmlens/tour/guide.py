"""The tour itself: its steps in order, and the page that they end in."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from mmlens.analysis import grad_x_activation
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.results import Provenance
from mmlens.targets import answer_word
from mmlens.tour import circuits, converging, edits, sections, sentences
from mmlens.tour.case import Case, case_of, is_organism, unknown_words
from mmlens.tour.found import Found, at
from mmlens.tour.page import page
from mmlens.tour.switching import NEW_TOKENS, Rate, SwitchedOff, forced, numbers_to_try, ranked, rate, switch_off

STEPS = (
    "positions",
    "logit lens",
    "neurons",
    "ablation",
    "switching off",
    "other scenes",
    "patching",
    "convergence",
    "circuit",
    "edit",
)


@dataclass(frozen=True)
class Tour:
    """What a tour found: the answer, the main sentence, the rate beside it, and where the page lies."""

    answer: str
    sentence: str
    beside: str
    path: Path
    switched: SwitchedOff | None
    rate: Rate | None


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
        on_object=at(until, case.mask),
        seed=seed,
        draws=draws,
        folder=out / "results",
    )
    parts, switched, frequency = [], None, None
    with tqdm(total=len(STEPS), disable=None if progress is None else not progress, leave=False) as bar:

        def step(name: str) -> None:
            bar.set_description(name)
            bar.update()

        step("positions")
        parts.append(sections.positions(found))
        step("logit lens")
        parts.append(sections.lens(model, found))
        if answer:
            step("neurons")
            scored = grad_x_activation(model, until, token)
            neurons = ranked(model, scored)
            parts.append(sections.neurons(model, found, scored, neurons))
            step("ablation")
            parts.append(sections.ablation(model, found, neurons))
            step("switching off")
            switched = switch_off(model, inputs, neurons, numbers_to_try(neurons), draws=draws, seed=seed)
            found.save("switched_off", switched)
            tried = switched.number or int(switched.tried[-1])
            step("other scenes")
            if case.scene is not None and is_organism(model) and scenes:
                frequency = rate(model, tried, scenes=scenes, seed=seed, but=case.scene.seed[2])
                found.save("rate", frequency)
            parts.append(sentences.switched(switched, frequency, chosen))
            step("patching")
            parts.append(sections.patching(model, found))
            step("convergence")
            parts.append(converging.section(model, found, neurons[:tried]))
            step("circuit")
            pair = case.pair_of(chosen) if is_organism(model) else None
            if pair is None:
                parts.append(circuits.LEFT_OUT)
            else:
                parts += circuits.sections(model, found, pair)
                step("edit")
                parts.append(edits.section(model, found, pair, answer))
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
        sections=parts,
        provenance=_provenance(model, inputs, case, seed, command),
    )
    path.write_text(text, encoding="utf-8")
    return Tour(answer, sentence, beside, path, switched, frequency)


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
