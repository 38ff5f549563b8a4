"""What is known of a neuron on one page: its words, where it fires, how active it is where, and what its absence changes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from torch import Tensor

from mmlens.analysis import AblationCurve, Decoding, ReceptiveField, TimeField
from mmlens.evaluation import Evaluation
from mmlens.inputs import Inputs
from mmlens.neurons import Neurons
from mmlens.plot.canvas import spelled
from mmlens.plot.html import Page, document
from mmlens.plot.neuron_card_script import SCRIPT, STYLE
from mmlens.plot.stage import Stage, group_names, staged
from mmlens.plot.stage_script import LAYOUT
from mmlens.plot.stage_script import SCRIPT as STAGE_SCRIPT
from mmlens.plot.stage_script import STYLE as STAGE_STYLE
from mmlens.plot.switched_off import number, switched_off
from mmlens.stats import Statistics

SIDE, WIDE = 300, 620  # pixels of a picture and of a sound, at first


def neuron_card(
    shown: Decoding | Neurons,
    *,
    lowered: Decoding | None = None,
    fields: Sequence[ReceptiveField | TimeField] = (),
    inputs: Inputs | Sequence[Inputs] = (),
    statistics: Statistics | None = None,
    statistic: str = "mean",
    ablation: AblationCurve | Evaluation | Sequence[AblationCurve] | None = None,
    title: str | None = None,
) -> Page:
    """Return one page, which needs no network, of each neuron of `shown`, chosen by tabs; `.save(path)` it, or show it.

    What is not given is not shown. `shown` (`decode(...)`) and `lowered` (`decode(..., largest=False)`) are the words that
    it raises and lowers, with what a unit of activation adds to their logits. `fields` (`receptive_field`, `time_field`) are
    where it fires: red where above 0, blue where below, on one scale for all fields of a neuron; `inputs` are those that
    they were measured on. `statistics` are shown by label and group (`statistic` of each).

    `ablation` is one curve or evaluation for all neurons, or a curve for each of them, beside its random controls. Of an
    evaluation, a neuron is shown with the interventions that are called by its label ("L3.u120"), else with all of them.

    Raises ValueError for results of other neurons, for fields of other inputs, and for another number of curves.
    """
    neurons = shown.neurons if isinstance(shown, Decoding) else shown
    if not len(neurons):
        raise ValueError("a card is of one neuron or more, got none: give some")
    if lowered is not None and lowered.neurons != neurons:
        raise ValueError(f"words raised and lowered are of the same neurons, got {neurons} and {lowered.neurons}")
    own = [_Field.of(field, neurons, inputs) for field in fields]
    largest = [max((float(one.values[n].abs().max()) for one in own), default=0.0) for n in range(len(neurons))]
    labels = neurons.labels()
    title = title or ("A neuron" if len(neurons) == 1 else f"{len(neurons)} neurons")
    parts = [f"<h1>{escape(spelled(title))}</h1>", f'<p class="soft">{escape(_about(shown, statistics))}</p>', _tabs(labels)]
    for n, label in enumerate(labels):
        words = [
            _words("Words it raises" if _largest(one) else "Words it lowers", one, n) for one in _decodings(shown, lowered)
        ]
        counts = [] if statistics is None else [_counts(statistics, statistic, neurons, n)]
        what = f"<h2>{escape(label)}{_score(neurons, n)}</h2>"
        parts.append(_panel(n, what + f'<div class="columns">{"".join(words + counts)}</div>', len(labels)))
    if own:
        parts.append(_fields(own))
    for n in range(len(labels)):
        if effects := switched_off(ablation, neurons, n):
            parts.append(_panel(n, effects, 0))
    keys = "Tab to a picture, arrows from position to position, Escape to leave it" if own else ""
    if len(labels) > 1:
        keys = f"arrows on the tabs from neuron to neuron{'; ' if keys else ''}{keys}"
    parts.append(f'<p class="soft">Keys: {keys}.</p>' if keys else "")
    data = {
        "names": labels,
        "scale": [value or 1.0 for value in largest],
        "fields": [one.data() for one in own],
    }
    style, script = STAGE_STYLE + LAYOUT + STYLE, STAGE_SCRIPT + SCRIPT
    return Page(document(spelled(title), "\n".join(parts), style=style, script=script, data=data), height=900)


@dataclass(frozen=True)
class _Field:
    """One field, ready to be shown: the views of its medium, and each neuron's values at its positions."""

    stage: Stage
    group: str
    row: int
    which: str
    asked: str
    positions: list[int]
    values: Tensor

    @classmethod
    def of(cls, field: ReceptiveField | TimeField, neurons: Neurons, inputs: Inputs | Sequence[Inputs]) -> "_Field":
        wanted, known = list(neurons), list(field.neurons)
        if missing := [n for n in wanted if n not in known]:
            raise ValueError(f"each field is of all neurons of the card, {missing[0]} is in none of {field.neurons}")
        given = [inputs] if isinstance(inputs, Inputs) else list(inputs)
        place, found = next(((n, one) for n, one in enumerate(given) if one.digest() in field.provenance.inputs), (0, None))
        if found is None:
            raise ValueError(
                f"a field is shown on the inputs that it was measured on, none of the {len(given)} given are those of "
                f"{field.provenance.parameters}: give them as inputs="
            )
        row = int(field.provenance.parameters["row"])
        medium = _medium(field, found, row)
        group = group_names(found, row)[medium]
        views = tuple(
            replace(view, width=WIDE if view.kind == "sound" else min(view.width, SIDE))
            for view in staged(found, row).views
            if view.name == group or view.name.startswith(f"{group},")
        )
        return cls(
            stage=Stage(views, found.tokens.shape[1]),
            group=group,
            row=row,
            which=f", inputs {place}" if len(given) > 1 else "",
            asked=" ".join(found.text[row].split()),
            positions=(found.medium[row] == medium).nonzero()[:, 0].tolist(),
            values=field.activations[[known.index(n) for n in wanted]].double(),
        )

    @property
    def name(self) -> str:
        """Which medium of which row it is, of which inputs where there are several."""
        return f"{self.group} of row {self.row}{self.which}"

    def data(self) -> dict[str, Any]:
        """Return what the script knows of the field: values with four digits, and its strongest position in words."""
        where = self.stage.about()
        about = []
        for own in self.values:
            at = int(own.abs().argmax())
            place = where[self.positions[at]].removeprefix(f"{self.group}, ")
            about.append(f"strongest {number(float(own[at]))}, {place}; mean {number(float(own.mean()))}")
        return {
            "name": self.name,
            "group": self.group,
            "positions": self.positions,
            "values": [[float(f"{value:.4g}") for value in own] for own in self.values.tolist()],
            "about": about,
        }


def _medium(field: ReceptiveField | TimeField, inputs: Inputs, row: int) -> int:
    """Return which medium of the row a field is of."""
    parameters = field.provenance.parameters
    if isinstance(field, ReceptiveField):
        return int(parameters["image"])
    return int(inputs.medium[row][inputs.mask("audio")[row]].unique()[int(parameters["sound"])])


def _fields(own: Sequence[_Field]) -> str:
    figures = "".join(
        f'<div class="field"><p><b>{escape(one.name)}</b> <span class="soft">{escape(spelled(one.asked, 90))}</span></p>'
        f'{one.stage.html(f"field{n}")}<p class="read" id="read{n}"></p></div>'
        for n, one in enumerate(own)
    )
    return f"""<section><h2>Where it fires</h2><div class="tools">
<label><input type="checkbox" id="colour" checked> colour</label>
<label>size <input type="range" id="zoom" min="1" max="4" step="0.25" value="1"></label>
<span class="legend soft"><i style="background: var(--hot)"></i> above 0 <i style="background: var(--cold)"></i> below 0,
one scale for all fields of a neuron</span></div><div class="fields">{figures}</div></section>"""


def _about(shown: Decoding | Neurons, statistics: Statistics | None) -> str:
    origin = shown.provenance if isinstance(shown, Decoding) else statistics and statistics.provenance
    return f"of {spelled(origin.model)}" if origin else ""


def _tabs(labels: Sequence[str]) -> str:
    if len(labels) == 1:
        return ""
    tabs = "".join(
        f'<button type="button" role="tab" id="tab{n}" aria-controls="panel{n}" aria-selected="{str(not n).lower()}" '
        f'tabindex="{0 if not n else -1}">{escape(label)}</button>'
        for n, label in enumerate(labels)
    )
    return f'<div role="tablist" aria-label="neurons">{tabs}</div>'


def _panel(n: int, inside: str, tabs: int) -> str:
    role = f' role="tabpanel" id="panel{n}" aria-labelledby="tab{n}"' if tabs > 1 else ""
    return f'<section data-neuron="{n}"{role}{" hidden" if n else ""}>{inside}</section>'


def _score(neurons: Neurons, n: int) -> str:
    score = "" if neurons.score is None else f", score {float(neurons.score[n]):.3g}"
    module, layer, unit = list(neurons)[n]
    return f' <span class="soft">{escape(module)}, layer {layer}, unit {unit}{score}</span>'


def _decodings(shown: Decoding | Neurons, lowered: Decoding | None) -> list[Decoding]:
    return [one for one in (shown, lowered) if isinstance(one, Decoding)]


def _largest(decoding: Decoding) -> bool:
    return bool(decoding.provenance.parameters.get("largest", True))


def _words(heading: str, decoding: Decoding, n: int) -> str:
    effects = decoding.effects[n].tolist()
    span = float(decoding.effects[n].abs().max()) or 1.0
    lines = "".join(
        f"<tr><td>{escape(spelled(word, 24))}</td><td>{_bar(effect, span)}</td><td>{number(effect)}</td></tr>"
        for word, effect in zip(decoding.words[n], effects, strict=True)
    )
    unit = "logits per unit of activation"
    if decoding.provenance.parameters.get("signed"):
        unit += ", as its sign acts"
    return (
        f'<section><h3>{heading}</h3><table class="bars words"><thead><tr><th>word</th>'
        f'<th><span class="soft">{unit}</span></th><th></th></tr></thead><tbody>{lines}</tbody></table></section>'
    )


def _bar(value: float, span: float, *, both: bool = False) -> str:
    """Return a bar from 0, rightwards; with `both`, from the middle, leftwards where it is below 0."""
    wide = min(abs(value) / span, 1) * (50 if both else 100)
    left = (50 - wide if value < 0 else 50) if both else 0
    zero = '<b style="left: 50%"></b>' if both else ""
    sign = ' class="cold"' if value < 0 else ""
    return f'<span class="track" aria-hidden="true">{zero}<i{sign} style="left: {left:.1f}%; width: {wide:.1f}%"></i></span>'


def _counts(statistics: Statistics, statistic: str, neurons: Neurons, n: int) -> str:
    module, layer, unit = list(neurons)[n]
    values = statistics.table(statistic, module)[:, :, layer, unit]
    counted = (statistics.tokens if statistics.weighting == "tokens" else statistics.samples)[module]
    span = float(values.nan_to_num(0).abs().max()) or 1.0
    both = bool((values < 0).any())
    head = "".join(f"<th>{escape(spelled(group))}</th>" for group in statistics.groups)
    lines = []
    for label, row, count in zip(statistics.labels, values.tolist(), counted.tolist(), strict=True):
        cells = "".join(
            f'<td title="n = {k:,}">{_bar(value, span, both=both)}<span class="number">{number(value)}</span></td>'
            if k
            else '<td class="soft">none</td>'
            for value, k in zip(row, count, strict=True)
        )
        lines.append(f"<tr><td>{escape(spelled(label, 32))}</td>{cells}</tr>")
    what = "positions" if statistics.weighting == "tokens" else "examples"
    total = ", ".join(f"{spelled(g)} {k:,}" for g, k in zip(statistics.groups, counted.sum(0).tolist(), strict=True))
    heading, tail = spelled(statistic.capitalize()), f"site {statistics.site}; {what}: {total}"
    return (
        f"<section><h3>{escape(heading)} activation by label and group</h3>"
        f'<div class="scroll-x"><table class="bars"><thead><tr><th>label</th>{head}</tr></thead>'
        f'<tbody>{"".join(lines)}</tbody></table></div><p class="soft">{escape(tail)}</p></section>'
    )
