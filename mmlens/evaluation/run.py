"""A data set of tasks, asked with and without interventions and with their random controls."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmlens.data import Example
from mmlens.data.places import Indexed, items
from mmlens.evaluation.ablation import Ablation
from mmlens.evaluation.arms import BASELINE, Arm, Intervention, as_ablations, controls, told
from mmlens.evaluation.reference import checkpoint_beside, settled
from mmlens.evaluation.result import Evaluation, control
from mmlens.evaluation.scores import UNLABELLED, Scores
from mmlens.evaluation.scoring import Scorer
from mmlens.model import HookedMLLM
from mmlens.sweeps import sweep


def evaluate(
    model: HookedMLLM,
    examples: Iterable[Any] | Indexed,
    metric: str | Callable[..., Any],
    interventions: Mapping[str, Intervention],
    *,
    draws: int | Mapping[str, int] = 10,
    off_diagonal: bool = True,
    reference: Iterable[Any] | Indexed | None = None,
    max_new_tokens: int = 16,
    seed: int = 0,
    batch_size: int = 8,
    chat: bool = False,
    checkpoint: str | Path | None = None,
    every: int = 200,
    resume: bool = True,
    progress: bool = True,
) -> Evaluation:
    """Return what `examples` score with the model as it is, under each intervention, and under its random controls.

    A task is all examples of one label. `metric` is a function of what the model writes (greedily, up to `max_new_tokens`)
    and of the gold answers, or a name in `metrics.METRICS`. For two others nothing is written: "log_prob" is the
    log-probability (nats) of the first gold answer; "margin" is how far the logits of its tokens stand above the best other
    token's, on average, and still moves where the answer is certain. An intervention is `Neurons` (held at 0 at `post`,
    everywhere), an `Ablation`, a list of hooks, or a function of inputs that returns one (what masks positions is made from
    the inputs, so it is a function).

    Every set of neurons has `draws` random controls (one number, or one by name: 10 where left out): as many others of the
    same layers, drawn by `seed`, treated alike; 10 or more say how far chance reaches, 0 leaves them out. Every intervention
    is run on every task; with `off_diagonal=False`, one that is called as a task is run on that task only. "mean" and
    "resample" are of what the neurons do as the prompts of `reference` are read (the examples' own unless given), every
    position counting once, in a sweep before.

    The rest is as in `sweep`: what fails is left out, of all arms; the state is kept in `checkpoint` (the reference's in a
    file beside it) and gone on with; several processes share the work. A checkpoint knows functions and hooks by their names
    only. It takes 1 + interventions x (1 + draws) runs of each example. Sources: Huo et al. 2024 (methods 3.c), Huang et al.
    2024 (4.f, 4.g); neither has these controls, without which a loss says little about what neurons are for.

    Raises ValueError for a metric, a name and a number that are none, and for neurons without controls, TypeError for what
    is no intervention, and what `sweep` raises.
    """
    scorer = Scorer.of(metric, max_new_tokens=max_new_tokens, chat=chat)
    given = as_ablations(interventions, model.widths)
    description = [told(name, one) for name, one in given.items()]
    random = controls({name: one for name, one in given.items() if isinstance(one, Ablation)}, draws, seed)
    owner = {name: name for name in given} | {arm: name for name, drawn in random.items() for arm in drawn}
    names = [BASELINE, *(arm for name in given for arm in (name, *random.get(name, ())))]
    if len({*names, *map(control, random)}) < len(names) + len(random):
        raise ValueError(f"an intervention has a name of its own, got one that is taken among {', '.join(names)}")
    tasks = set() if off_diagonal else _tasks(examples)
    options: dict[str, Any] = dict(batch_size=batch_size, chat=chat, every=every, resume=resume, progress=progress)
    beside = None if checkpoint is None else checkpoint_beside(checkpoint)
    done = {name: one for name, one in given.items() if not isinstance(one, Ablation)}
    done |= settled(
        model,
        {name: one for name, one in given.items() if isinstance(one, Ablation)}
        | {arm: one for drawn in random.values() for arm, one in drawn.items()},
        examples if reference is None else reference,
        checkpoint=beside,
        **options,
    )
    arms = [Arm(BASELINE, None, ()), *(Arm(name, owner[name], done[name]) for name in names[1:])]
    only = [name for name in given if name in tasks]
    scores = Scores(arms, scorer, only=only, seed=seed, interventions=description)
    found = sweep(model, examples, {"evaluation": scores}, checkpoint=checkpoint, **options)
    return replace(found["evaluation"], failures=found.failures)


def _tasks(examples: Iterable[Any] | Indexed) -> set[str]:
    """Return the labels of all examples. Raises ValueError for examples that can be read only once."""
    if isinstance(examples, Iterator):
        raise ValueError(
            "off_diagonal=False reads all labels before the evaluation, and these examples can be read only once: give a "
            "list, or leave it out"
        )
    columns = getattr(examples, "column_names", None) or ()
    rows: Any = examples.select_columns(["label"]) if "label" in columns else examples  # pyright: ignore
    labels: set[str] = set()
    for _, read in items(rows):
        with suppress(Exception):  # of what can't be read, the sweep will say so
            row = read()
            label = row.label if isinstance(row, Example) else row.get("label")
            labels.add(UNLABELLED if label is None else str(label))
    return labels
