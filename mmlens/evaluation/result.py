"""What an evaluation came to: each example's score under each arm, and the table of what that says."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.stats import false_discovery_control, rankdata
from torch import Tensor

from mmlens.evaluation.arms import BASELINE
from mmlens.evaluation.uncertainty import interval, sign_flip
from mmlens.results import Result
from mmlens.sweeps import Failure

COLUMNS = """n clusters mean low high difference difference_low difference_high p p_corrected
draws draw_low draw_high to_random rank""".split()


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation(Result):
    """Scores of examples under arms: the "baseline", each intervention, and each intervention's random controls.

    `scores` [arm, example], in the metric's units, NaN where an arm was not run. `said` are indices in `texts` of what was
    answered (-1: nothing was written), which `answers` spells out. `random` names the control arms of each intervention.
    `golds`, `ids`, `places` (in the data set, from 0), `tasks` and `clusters` (the same number where the same media are
    shown) are the examples', in the order of the data set. `failures` were left out.
    """

    metric: str
    arms: tuple[str, ...]
    random: dict[str, tuple[str, ...]]
    scores: Float[Tensor, "arm example"]
    said: Int[Tensor, "arm example"]
    texts: tuple[str, ...]
    golds: tuple[tuple[str, ...], ...]
    ids: tuple[str, ...]
    places: tuple[int, ...]
    tasks: tuple[str, ...]
    clusters: Int[Tensor, " example"]
    failures: tuple[Failure, ...]

    @cached_property
    def answers(self) -> dict[str, tuple[str | None, ...]]:
        """What was answered to each example under each arm (None: nothing was written), for metrics of whole sets."""
        return {
            arm: tuple(self.texts[index] if index >= 0 else None for index in row)
            for arm, row in zip(self.arms, self.said.tolist(), strict=True)
        }

    def table(self, *, resamples: int = 9999, seed: int = 0) -> pd.DataFrame:
        """Return a row for each intervention and task: the baseline's, then each intervention's and its random control's.

        `n` examples in `clusters` clusters; their `mean` score with its 95 % interval `low` to `high` (bootstrap over
        clusters); `difference` to the baseline, paired, likewise; `p` by a paired sign-flip test over clusters (two-sided),
        and `p_corrected` over all of the table (Benjamini and Hochberg's false discovery rate).

        In the row of a random control, scores are means over its `draws`, and `draw_low` to `draw_high` is from the lowest
        draw's mean to the highest. In the row of an intervention, `to_random` is its mean less that of its draws, and `rank`
        its place among it and its draws, from 1 (the lowest) to draws + 1; equal ones share the middle of theirs.

        `resamples` are the draws behind every interval and p: seconds for each row of 1000 examples. A table is made once.
        """
        if (resamples, seed) not in self._tables:
            self._tables[resamples, seed] = self._table(resamples=resamples, seed=seed)
        return self._tables[resamples, seed].copy()

    @cached_property
    def _tables(self) -> dict[tuple[int, int], pd.DataFrame]:
        return {}

    def _table(self, **options: int) -> pd.DataFrame:
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        for task in dict.fromkeys(self.tasks):
            here = np.array([own == task for own in self.tasks])
            scores = dict(zip(self.arms, self.scores.numpy()[:, here], strict=True))
            baseline, clusters = scores[BASELINE], self.clusters.numpy()[here]
            rows[BASELINE, task] = _mean(baseline, clusters, **options)
            for name, names in self.random.items():
                own = scores[name]
                if np.isnan(own).any():
                    continue
                rows[name, task] = _mean(own, clusters, **options) | _difference(own - baseline, clusters, **options)
                if not names:
                    continue
                drawn = np.stack([scores[one] for one in names])
                means = drawn.mean(1)
                spread = dict(draws=len(names), draw_low=means.min(), draw_high=means.max())
                rank = rankdata([own.mean(), *means])[0]
                rows[name, task] |= spread | dict(to_random=own.mean() - means.mean(), rank=rank)
                away = (drawn - baseline).mean(0)  # exactly 0 where no draw changes anything
                rows[control(name), task] = (
                    _mean(drawn.mean(0), clusters, **options) | _difference(away, clusters, **options) | spread
                )
        if tested := [row for row in rows.values() if "p" in row]:
            for row, p in zip(tested, false_discovery_control([row["p"] for row in tested]), strict=True):
                row["p_corrected"] = p
        order = [BASELINE, *(one for name in self.random for one in (name, control(name)))]
        names = sorted(rows, key=lambda one: order.index(one[0]))
        index = pd.MultiIndex.from_tuples(names, names=["intervention", "task"])
        return pd.DataFrame([rows[name] for name in names], index=index, columns=COLUMNS)

    def matrix(self, what: str = "difference", **options: Any) -> pd.DataFrame:
        """Return one column of the table, intervention x task; `options` are the table's."""
        column = self.table(**options)[what]
        return pd.DataFrame(
            {task: {name: column.get((name, task), np.nan) for name in self.random} for task in dict.fromkeys(self.tasks)}
        )

    def markdown(self, **options: Any) -> str:
        """Return the table in Markdown, as it is read: numbers with their intervals. `options` are the table's."""
        head, *lines = self.cells(**options)
        return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])

    def cells(self, **options: Any) -> list[list[str]]:
        """Return the table's head and rows as text: numbers with their intervals. `options` are the table's."""
        found = [["intervention", "task", "n", self.metric, "difference", "p (corrected)", "random draws", "rank"]]
        for row in self.table(**options).reset_index().to_dict("records"):
            cells = ["{intervention}", "{task}", "{n:.0f}", "{mean:.3f}", "", "", "", ""]
            if not np.isnan(row["low"]):
                cells[3] += " [{low:.3f}, {high:.3f}]"
            if not np.isnan(row["p"]):
                cells[4:6] = ["{difference:+.3f}", "{p:.4f} ({p_corrected:.4f})"]
            if not np.isnan(row["difference_low"]):
                cells[4] += " [{difference_low:+.3f}, {difference_high:+.3f}]"
            if not np.isnan(row["draws"]):
                cells[6] = "{draw_low:.3f} to {draw_high:.3f}"
            if not np.isnan(row["rank"]):
                cells[7] = f"{{rank:g}} of {row['draws'] + 1:.0f}"
            found.append([cell.format(**row) for cell in cells])
        return found

    def __repr__(self) -> str:
        names = [BASELINE, *self.random]
        scores = self.scores[[self.arms.index(name) for name in names]].numpy()
        means = {task: scores[:, [own == task for own in self.tasks]].mean(1) for task in dict.fromkeys(self.tasks)}
        shown = pd.DataFrame(means, index=names).to_string(float_format="{:.3f}".format, na_rep="")
        return f"Evaluation: mean {self.metric} of {len(self.ids)} examples ({len(self.failures)} failed)\n{shown}"


def control(name: str) -> str:
    """Return what the row of an intervention's random draws is called."""
    return f"{name} (random)"


def _mean(values: np.ndarray, clusters: np.ndarray, **options: Any) -> dict[str, Any]:
    low, high = interval(values, clusters, **options)
    return dict(n=len(values), clusters=len(set(clusters)), mean=values.mean(), low=low, high=high)


def _difference(away: np.ndarray, clusters: np.ndarray, **options: Any) -> dict[str, Any]:
    low, high = interval(away, clusters, **options)
    p = sign_flip(away, clusters, **options)
    return dict(difference=away.mean(), difference_low=low, difference_high=high, p=p)
