"""The accumulator behind an evaluation: every batch is run under every arm, and each example's scores are kept."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed

from mmlens.evaluation.arms import Arm
from mmlens.evaluation.result import Evaluation
from mmlens.evaluation.scoring import Scorer
from mmlens.inputs import Inputs
from mmlens.media import Sound, Video
from mmlens.results import Provenance
from mmlens.stats import Accumulator, Batch
from mmlens.stats.accumulator import Hooked

UNLABELLED = "all"


class Scores(Accumulator):
    """What each example scores under each arm, and what was answered, by the example's place in the data set.

    `only` are tasks: an intervention of such a name is run on the examples of that label and no others. `told` is more to be
    kept in the provenance, `seed` among it.
    """

    def __init__(self, arms: Sequence[Arm], scorer: Scorer, *, only: Sequence[str] = (), **told: Any) -> None:
        super().__init__()
        self.arms, self.scorer, self.only, self.told = tuple(arms), scorer, frozenset(only), told
        self.found: dict[int, dict[str, Any]] = {}

    def recipe(self) -> dict[str, Any]:
        """Return the parameters, as a checkpoint compares them."""
        return {
            **self.scorer.recipe(),
            **self.told,
            "only": sorted(self.only),
            "arms": {arm.name: arm.recipe() for arm in self.arms},
        }

    def observe(self, model: Any, batch: Batch) -> None:
        """Run every arm on the batch; where arms are for some tasks only, task by task."""
        tasks = [UNLABELLED if label is None else label for label in batch.labels]
        parts = [[row for row, own in enumerate(tasks) if own == task] for task in dict.fromkeys(tasks)]
        found: dict[int, dict[str, Any]] = {}
        for rows in parts if self.only else [list(range(len(tasks)))]:
            examples, places = [batch.examples[row] for row in rows], [batch.places[row] for row in rows]
            inputs = self.scorer.inputs(model, examples, given=None if self.only else batch.inputs)
            for index, row in enumerate(rows):
                found[batch.places[row]] = {
                    "id": batch.ids[row],
                    "label": tasks[row],
                    "cluster": shown(inputs, index),
                    "golds": list(batch.examples[row].answers),
                    "scores": [],
                    "said": [],
                }
            for arm in self.arms:
                if arm.intervention in self.only and arm.intervention != tasks[rows[0]]:
                    scores, said = [None] * len(rows), [None] * len(rows)
                else:
                    scores, said = self.scorer.scores(model, inputs, examples, arm.hooks(model, inputs, places))
                for place, score, answer in zip(places, scores, said, strict=True):
                    found[place]["scores"].append(score)
                    found[place]["said"].append(answer)
        self._gathered.append(lambda: self.found.update(found))

    def merge_state(self, incoming_state: Any) -> None:
        """Add another accumulator's examples. Raises ValueError for other parameters, and for the same places again."""
        if not isinstance(incoming_state, Scores) or incoming_state.recipe() != self.recipe():
            raise ValueError("scores add up with those of equal parameters: make both alike")
        if both := self.found.keys() & incoming_state.found.keys():
            raise ValueError(f"an example counts once, and the one at place {min(both)} was scored twice: leave it out")
        super().merge_state(incoming_state)
        self.found.update(incoming_state.found)

    def reduce(self, group: Any = None) -> None:
        """Bring the examples of all processes together, in every one of them: one process after the other shows its own."""
        super().reduce(group)
        mine = self.saved()["found"]
        for rank in range(distributed.get_world_size(group)):
            size = torch.tensor([len(mine)])
            distributed.broadcast(size, rank, group)
            theirs = mine.clone() if rank == distributed.get_rank(group) else mine.new_empty(int(size))
            distributed.broadcast(theirs, rank, group)
            self.found.update(json.loads(theirs.numpy().tobytes()))

    def reset(self) -> None:
        """Go back to no example."""
        super().reset()
        self.found = {}

    def saved(self) -> dict[str, Any]:
        """Return the states, and the examples in the order of their places, as JSON in bytes."""
        text = json.dumps(sorted(self.found.items())).encode()
        return {**super().saved(), "found": torch.frombuffer(bytearray(text), dtype=torch.uint8)}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `saved` returned. Raises ValueError where it is something else."""
        super().restore(saved)
        text = saved.get("found")
        if not isinstance(text, Tensor) or text.dtype != torch.uint8:
            raise ValueError("the checkpoint has no scores in it")
        self.found = dict(json.loads(text.numpy().tobytes()))
        if len(self.found) != self.examples:
            raise ValueError(f"the checkpoint has the scores of {len(self.found)} examples, and counts {self.examples}")

    def result(self, model: Hooked) -> Evaluation:
        """Return the evaluation so far. Raises ValueError where no example was scored."""
        inputs = self.inputs
        places = sorted(self.found)
        ones = [self.found[place] for place in places]
        scores = [[torch.nan if score is None else score for score in one["scores"]] for one in ones]
        clusters = {own: index for index, own in enumerate(dict.fromkeys(one["cluster"] for one in ones))}
        texts = sorted({text for one in ones for text in one["said"] if text is not None})
        number: dict[str | None, int] = {text: index for index, text in enumerate(texts)}
        interventions = dict.fromkeys(arm.intervention for arm in self.arms if arm.intervention is not None)
        return Evaluation(
            metric=self.scorer.name,
            arms=tuple(arm.name for arm in self.arms),
            random={
                name: tuple(arm.name for arm in self.arms if arm.intervention == name != arm.name) for name in interventions
            },
            scores=torch.tensor(scores, dtype=torch.float64).T.contiguous(),
            said=torch.tensor([[number.get(text, -1) for text in one["said"]] for one in ones]).T.contiguous(),
            texts=tuple(texts),
            golds=tuple(tuple(one["golds"]) for one in ones),
            ids=tuple(one["id"] for one in ones),
            places=tuple(places),
            tasks=tuple(one["label"] for one in ones),
            clusters=torch.tensor([clusters[one["cluster"]] for one in ones]),
            failures=(),
            provenance=Provenance.record(
                model,
                inputs,
                analysis="evaluate",
                **self.scorer.recipe(),
                **self.told,
                only=sorted(self.only),
            ),
        )


def shown(inputs: Inputs, row: int) -> str:
    """Return a hash of the pixels and samples of a row's media; of its text where it has none."""
    sha = hashlib.sha256()
    media = inputs.media[row]
    for one in media:
        if isinstance(one, Sound):
            parts: list[np.ndarray] = [one.samples]
        else:
            parts = [np.asarray(frame) for frame in (one.frames if isinstance(one, Video) else (one,))]
        for part in parts:
            sha.update(f"{part.shape}{part.dtype}".encode())
            sha.update(np.ascontiguousarray(part).tobytes())
    if not media:
        sha.update(inputs.text[row].encode())
    return sha.hexdigest()[:16]
