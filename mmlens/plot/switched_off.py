"""What the absence of neurons changes, beside as many random ones, as a section of a page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import torch

from mmlens.analysis import AblationCurve
from mmlens.evaluation import Evaluation
from mmlens.evaluation.result import control
from mmlens.neurons import Neurons
from mmlens.plot.canvas import spelled


@dataclass(frozen=True)
class Effect:
    """What the score is without some neurons, `low` to `high` its interval, and what each random `draw` makes of it."""

    name: str
    value: float
    draws: tuple[float, ...]
    low: float = math.nan
    high: float = math.nan
    note: str = ""


def number(value: float) -> str:
    """Return a number with its sign and three digits, whatever its size."""
    return f"{value:+#.3g}".replace("-", "−") if value else "0"


def switched_off(ablation: AblationCurve | Evaluation | Sequence[AblationCurve] | None, neurons: Neurons, index: int) -> str:
    """Return the section of what changes without the neuron of that index, or without those of a common curve.

    Raises ValueError for another number of curves than of neurons, and for a curve of another neuron.
    """
    if ablation is None:
        return ""
    label = neurons.labels()[index]
    if isinstance(ablation, Evaluation):
        heading = "Without it" if label in ablation.random else "Without neurons"
        return _section(heading, f"change of mean {ablation.metric}, with its 95 % interval", _evaluated(ablation, label))
    curve = ablation
    if not isinstance(curve, AblationCurve):
        if [one.neurons.labels() for one in curve] != [[own] for own in neurons.labels()]:
            raise ValueError(
                f"curves are of one neuron each, in the order of {neurons}, or one curve is of all; got {len(curve)} curves "
                f"of {[one.neurons for one in curve][:3]}"
            )
        curve = curve[index]
    relative, count = 0 in curve.ks, len(curve.neurons)
    own = (curve.change() if relative else curve.log_prob.exp()).mean(-1).tolist()
    draws = (curve.random_change() if relative else curve.random_log_prob.exp()).mean(-1)
    heading = f"Without {count} neurons, {curve.neurons.labels()[0]} the first"
    if alone := curve.neurons.labels() == [label]:
        heading = "Without it"
    elif curve.neurons == neurons:
        heading = f"Without these {count} neurons"
    effects = [
        Effect(
            label if alone else "all of them" if k == count else f"first {k}",
            own[place],
            tuple(draws[:, place].tolist()),
        )
        for place, k in enumerate(curve.ks)
        if k
    ]
    what = "relative change of the targets' probability (−1: nothing is left)" if relative else "the targets' probability"
    column = "change" if relative else "probability"
    return _section(heading, f"{what}, mean of {curve.log_prob.shape[-1]}", effects, column, least=0.1)


def _evaluated(found: Evaluation, label: str) -> list[Effect]:
    table = found.table()
    effects = []
    named = label in found.random
    for task in dict.fromkeys(found.tasks):
        baseline = float(table.loc[("baseline", task), "mean"])
        for name in found.random:
            if (named and name != label) or (name, task) not in table.index:
                continue
            row = table.loc[(name, task)]
            arms = [found.arms.index(one) for one in found.random[name]]
            here = torch.tensor([own == task for own in found.tasks])
            draws = found.scores[arms][:, here].double().mean(-1) - baseline if (control(name), task) in table.index else []
            effects.append(
                Effect(
                    task if named else f"{name}, {task}",
                    float(row["difference"]),
                    tuple(float(one) for one in draws),
                    float(row["difference_low"]),
                    float(row["difference_high"]),
                    f"n = {row['n']:.0f}" + ("" if math.isnan(row["p"]) else f", p = {row['p_corrected']:.2g} (corrected)"),
                )
            )
    return effects


def _section(heading: str, what: str, effects: Sequence[Effect], column: str = "change", least: float = 0.0) -> str:
    if not effects:
        return ""
    drawn = _drawing(effects, what, least)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in _cells(one))}</tr>" for one in effects)
    note = "<th></th>" if any(one.note for one in effects) else ""
    legend = "dot: this; grey: as many random neurons, a line for each draw, a band from the lowest to the highest"
    return (
        f'<h2>{escape(heading)}</h2><p class="soft">{escape(what)}; {legend}</p><div class="columns">{drawn}'
        f"<table><thead><tr><th>switched off</th><th>{column}</th><th>random draws</th>{note}</tr></thead>"
        f"<tbody>{lines}</tbody></table></div>"
    )


def _cells(one: Effect) -> list[str]:
    value = number(one.value) + ("" if math.isnan(one.low) else f" [{number(one.low)}, {number(one.high)}]")
    draws = "none"
    if one.draws:
        mean = sum(one.draws) / len(one.draws)
        draws = f"{number(mean)} ({number(min(one.draws))} to {number(max(one.draws))}, {len(one.draws)} draws)"
    return [spelled(one.name, 40), value, draws, *([one.note] if one.note else [])]


def _drawing(effects: Sequence[Effect], what: str, least: float) -> str:
    """Return the effects as dots on one axis, `least` long or longer, each above the range of its random draws."""
    ends = [v for one in effects for v in (0.0, one.value, one.low, one.high, *one.draws) if not math.isnan(v)]
    low, high = min(ends), max(ends)
    low = min(low, high - least)
    room = 0.06 * (high - low) or 1.0
    low, high = low - room, high + room
    left, wide, step, top = 170.0, 330.0, 30.0, 8.0

    def x(value: float) -> float:
        return left + wide * (value - low) / (high - low)

    height = top + step * len(effects) + 24
    parts = [f'<path class="zero" d="M{x(0.0):.1f} {top}V{height - 22:.0f}"/>']
    for place, one in enumerate(effects):
        y = top + step * (place + 0.5)
        name = escape(spelled(one.name, 20))
        parts.append(f'<text x="{left - 10:.0f}" y="{y + 4.5:.1f}" text-anchor="end">{name}</text>')
        if one.draws:
            a, b = x(min(one.draws)), x(max(one.draws))
            parts.append(f'<rect class="draws" x="{a:.1f}" y="{y - 8:.1f}" width="{max(b - a, 1):.1f}" height="16"/>')
            parts += [f'<path class="draw" d="M{x(v):.1f} {y - 8:.1f}v16"/>' for v in one.draws]
        if not math.isnan(one.low):
            parts.append(f'<path class="interval" d="M{x(one.low):.1f} {y:.1f}H{x(one.high):.1f}"/>')
        parts.append(f'<circle class="own" cx="{x(one.value):.1f}" cy="{y:.1f}" r="5.5"/>')
    for value, anchor in ((low + room, "start"), (high - room, "end")):
        parts.append(
            f'<text class="soft" x="{x(value):.1f}" y="{height - 6:.0f}" text-anchor="{anchor}">{number(value)}</text>'
        )
    told = "; ".join(": ".join(_cells(one)[:2]) + f", random {_cells(one)[2]}" for one in effects)
    return (
        f'<svg class="effects" role="img" aria-label="{escape(f"{what}: {told}")}" width="{left + wide:.0f}" '
        f'height="{height:.0f}" viewBox="0 0 {left + wide:.0f} {height:.0f}">{"".join(parts)}</svg>'
    )
