"""A data set through a model into accumulators: with progress, resumable, on as many processes as there are."""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from mmlens.data import Example
from mmlens.data.places import Indexed, Item, batches, fingerprint
from mmlens.inputs import Inputs
from mmlens.liveness import InertHook, UnknownHook
from mmlens.model import HookedMLLM
from mmlens.processes import Processes, processes
from mmlens.results import Provenance, Result, Storable, with_suffix
from mmlens.stats import Accumulator, Batch

GIVE_UP = 16  # where the first so many examples fail, it is not the examples


@dataclass(frozen=True)
class Failure(Storable):
    """An example that was left out: its `place` in the data set (from 0), its `id`, and why."""

    place: int
    id: str
    reason: str

    def __str__(self) -> str:
        return f"example {self.id!r} (number {self.place}): {self.reason}"


@dataclass(frozen=True, kw_only=True, repr=False)
class Sweep(Result):
    """What each accumulator came to, by its name; how many `examples` counted; and the `failures`, which did not."""

    results: dict[str, Result]
    examples: int
    failures: tuple[Failure, ...]

    def __getitem__(self, name: str) -> Any:
        """Return the result of the accumulator of that name."""
        return self.results[name]

    def __repr__(self) -> str:
        parts = "".join(f"\n  {name}: {result!r}" for name, result in self.results.items())
        return f"Sweep of {self.examples} examples ({len(self.failures)} left out){parts}"


class SweepFailed(RuntimeError):
    """No example could be used."""


@dataclass(frozen=True)
class Checkpoint(Storable):
    """How far a sweep came: the first `seen` examples are in `states`, or are failures.

    It is gone on with where `recipe` is the same, and where the examples at the places in `marks` look the same.
    """

    recipe: dict[str, Any]
    seen: int
    marks: dict[str, str]
    failures: tuple[Failure, ...]
    states: dict[str, dict[str, Any]]
    provenance: Provenance


def sweep(
    model: HookedMLLM,
    examples: Iterable[Any] | Indexed,
    accumulators: Mapping[str, Accumulator],
    *,
    batch_size: int = 8,
    chat: bool = False,
    checkpoint: str | Path | None = None,
    every: int = 200,
    resume: bool = True,
    progress: bool = True,
) -> Sweep:
    """Return what the accumulators gather from one run of the model over each batch of `examples`.

    `examples` are `Example`s, or rows with their names (a `datasets.Dataset`, streamed or not); of what can be indexed, only
    what is needed is read. An example that can't be read, is too long, does not fit into memory by itself or yields numbers
    that are not finite is left out, kept in `failures`, and warned about at the end.

    With `checkpoint` (a file) the state is written there about every `every` examples, whole or not at all, and, with
    `resume`, gone on with: a sweep that was killed and started again comes to the same numbers to the last bit (on a CPU,
    with as many threads and processes). Ctrl-C writes it once more. A full disk is warned about, and the last state stays.
    The file is refused, and left as it is, where it is damaged, in use, or of another model, other data or parameters.

    Under `accelerate launch` or `torchrun` every process takes its share of the batches, and all return the same result:
    one process' own for counts and maxima, to rounding for sums. The number of processes may change at a resumption.

    Raises ValueError for arguments and checkpoints as above, FileExistsError for a checkpoint that is there with
    resume=False, SweepFailed where no example could be used, and what a hook raises that the model does not have.
    """
    if batch_size < 1 or every < 1:
        raise ValueError(f"batches and checkpoints are of 1 example or more, got batch_size={batch_size}, every={every}")
    if not accumulators:
        raise ValueError("a sweep fills at least one accumulator, got none: give {'activity': TokenStats(model.widths)}")
    if used := [name for name, accumulator in accumulators.items() if accumulator.examples]:
        raise ValueError(
            f"a sweep starts with nothing counted, {used[0]!r} has {accumulators[used[0]].examples} examples in it: make a "
            "new accumulator, and add the two up by merge_state"
        )
    team = processes()
    with _reserved(checkpoint, team) as path:
        run = _Run(model, accumulators, team, batch_size=batch_size, chat=chat)
        team.agree("parameters", run.recipe)
        run.resume(path, resume=resume)
        before = run.seen
        stride = math.ceil(every / batch_size / team.size) * team.size * batch_size
        total = len(examples) if isinstance(examples, Indexed) else None
        bar = tqdm(desc="sweep", unit=" examples", total=total, initial=run.seen, disable=not (progress and team.first))
        try:
            with bar:
                for batch in batches(examples, batch_size, run.seen, run.marks):
                    run.take(batch)
                    if run.seen % stride == 0 and path is not None:
                        run.meet()
                        run.write(path)
                    bar.set_postfix({"failed": len(run.failures)} if run.failures else {}, refresh=False)
                    bar.update(len(batch))
        except (KeyboardInterrupt, Exception) as error:
            if (
                path is not None
                and team.size == 1
                and run.whole
                and run.seen > before
                and not isinstance(error, SweepFailed)
            ):
                run.write(path)
            raise
        run.meet(last=True)
        if path is not None:
            run.write(path)
        return run.result()


class _Run:
    """A sweep under way: the first `seen` examples are in the accumulators of all processes, or left out as failures."""

    def __init__(
        self, model: HookedMLLM, accumulators: Mapping[str, Accumulator], team: Processes, *, batch_size: int, chat: bool
    ) -> None:
        self.model, self.accumulators, self.team = model, dict(accumulators), team
        self.batch_size, self.chat = batch_size, chat
        self.recipe = {
            "weights": model.identity()["weights"],
            "batch_size": batch_size,
            "chat": chat,
            **{f"accumulators[{name!r}]": accumulator.recipe() for name, accumulator in accumulators.items()},
        }
        self.seen = 0
        self.ends: list[Item] = []
        self.marks: dict[str, str] = {}
        self.failures: list[Failure] = []
        self.counted = False  # whether any example was
        self.whole = True  # False while a batch is being counted: the states then hold a part of it

    # ---------------------------------------------------------------- one batch

    def take(self, batch: list[Item]) -> None:
        """Count a batch, if it is this process' turn."""
        if self.seen // self.batch_size % self.team.size == self.team.rank:
            read: list[tuple[int, Example]] = []
            failures: list[Failure] = []
            for place, get in batch:
                try:
                    read.append((place, Example.of(get(), place)))
                except Exception as error:  # a data set's rows can be broken in as many ways as there are libraries
                    failures.append(Failure(place, str(place), _said(error)))
            self._count(read, failures)
            self.failures += failures
            if not self.counted and len(self.failures) >= GIVE_UP:
                raise SweepFailed(f"the first {len(self.failures)} examples all failed, the first as {self.failures[0]}")
        self.ends = [*(self.ends[:1] or batch[:1]), batch[-1]]
        self.seen += len(batch)
        self.whole = True

    def _count(self, rows: list[tuple[int, Example]], failures: list[Failure]) -> None:
        """Count examples together; where that fails, in halves, down to one, which then is a failure."""
        if not rows:
            return
        try:
            self._observe(rows)
        except (UnknownHook, InertHook):
            raise
        except Exception as error:  # out of memory, unreadable, too long, not finite, ...: whatever it is, of which example?
            reason = _said(error)
        else:
            self.whole, self.counted = False, True
            for accumulator in self.accumulators.values():
                accumulator.update()
            return
        for accumulator in self.accumulators.values():
            accumulator.forget()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(rows) == 1:
            place, example = rows[0]
            failures.append(Failure(place, str(example.id), reason))
            return
        middle = len(rows) // 2
        self._count(rows[:middle], failures)
        self._count(rows[middle:], failures)

    def _observe(self, rows: list[tuple[int, Example]]) -> None:
        examples = tuple(example for _, example in rows)
        batch = Batch(
            inputs=encoded(self.model, examples, chat=self.chat),
            labels=tuple(example.label for example in examples),
            ids=tuple(str(example.id) for example in examples),
            places=tuple(place for place, _ in rows),
            examples=examples,
        )
        hooks = [hook for one in self.accumulators.values() for hook in one.hooks(self.model, batch)]
        with torch.no_grad():
            if hooks:
                with self.model.hooks(fwd_hooks=hooks, must_fire=False):
                    read = {name for pattern, _ in hooks for name in self.model.points.resolve(pattern)}
                    run = self.model if any("unembed" in name for name in read) else self.model.next_logits
                    run(batch.inputs)  # nobody else reads logits
            for accumulator in self.accumulators.values():
                accumulator.observe(self.model, batch)

    # ---------------------------------------------------------------- all processes

    def meet(self, *, last: bool = False) -> None:
        """Bring what all processes counted together in the first one; at the `last` meeting, in every one."""
        if self.team.size == 1:
            return
        self.team.agree("examples", [self.seen, self.mark()])
        gathered = self.team.gather([[one.place, one.id, one.reason] for one in self.failures])
        for accumulator in self.accumulators.values():
            accumulator.reduce(self.team.group)
        self.failures = sorted((Failure(*one) for part in gathered for one in part), key=lambda one: one.place)
        if not last and not self.team.first:
            self.failures = []
            for accumulator in self.accumulators.values():
                accumulator.reset()

    # ---------------------------------------------------------------- the checkpoint

    def mark(self) -> dict[str, str]:
        """Return what the first and the last example that were seen look like, by their places."""
        first = dict(list(self.marks.items())[:1]) or {str(item[0]): fingerprint(item) for item in self.ends[:1]}
        self.marks = {**first, **{str(item[0]): fingerprint(item) for item in self.ends[1:]}}
        return self.marks

    def write(self, path: Path) -> None:
        """Write the checkpoint, or warn that it can't be written: the last one then stays."""
        if not self.team.first:
            return
        state = Checkpoint(
            recipe=self.recipe,
            seen=self.seen,
            marks=self.mark(),
            failures=tuple(self.failures),
            states={name: accumulator.saved() for name, accumulator in self.accumulators.items()},
            provenance=Provenance.record(self.model, (), analysis="sweep"),
        )
        try:
            state.save(path)
        except OSError as error:
            warnings.warn(
                f"the checkpoint {path} could not be written ({error.strerror}), so the one before stays: make room. The "
                "sweep goes on, and tries again",
                stacklevel=3,
            )

    def resume(self, path: Path | None, *, resume: bool) -> None:
        """Go on from the checkpoint, where there is one: the first process reads it, and tells the others how far it is."""
        problem: str | None = None
        if self.team.first and path is not None and path.is_file():
            if resume:
                try:
                    self._restore(Checkpoint.load(path))
                except (ValueError, TypeError, KeyError) as error:
                    problem = f"{path} is no checkpoint of this sweep, and was left as it is: {error}"
            else:
                problem = f"{path} is there already: leave resume as True to go on with it, or name another file"
        problem, self.seen, self.marks = self.team.gather([problem, self.seen, self.marks])[0]
        self.counted = self.seen > 0
        if problem is not None:
            raise ValueError(problem) if resume else FileExistsError(problem)

    def _restore(self, checkpoint: Checkpoint) -> None:
        for name in dict.fromkeys([*self.recipe, *checkpoint.recipe]):
            ours, theirs = self.recipe.get(name), checkpoint.recipe.get(name)
            if ours != theirs:
                raise ValueError(f"{name} is {ours} here, and {theirs} there. Use the same, or name another file")
        for name, accumulator in self.accumulators.items():
            accumulator.restore(checkpoint.states[name])
        self.seen, self.marks, self.failures = checkpoint.seen, checkpoint.marks, list(checkpoint.failures)

    # ---------------------------------------------------------------- the end

    def result(self) -> Sweep:
        """Return what came out, and warn of what was left out. Raises SweepFailed where nothing came out."""
        counted = max(accumulator.examples for accumulator in self.accumulators.values())
        if not counted:
            raise SweepFailed(
                f"no example could be used; the first: {self.failures[0]}" if self.failures else "there are no examples"
            )
        if self.failures and self.team.first:
            warnings.warn(
                f"{len(self.failures)} example(s) were left out, beside {counted} that counted; the first: "
                f"{self.failures[0]}. See .failures",
                stacklevel=3,
            )
        return Sweep(
            results={name: accumulator.result(self.model) for name, accumulator in self.accumulators.items()},
            examples=counted,
            failures=tuple(self.failures),
            provenance=Provenance.record(
                self.model,
                next(iter(self.accumulators.values())).inputs,
                analysis="sweep",
                batch_size=self.batch_size,
                chat=self.chat,
            ),
        )


def encoded(
    model: HookedMLLM, examples: Sequence[Example], *, chat: bool = False, answer: str | Sequence[str] = ""
) -> Inputs:
    """Return examples as the model reads them, in one batch; `answer` and `chat` are as in `to_inputs`."""
    media: dict[str, Any] = {}
    for kind in ("images", "audio", "videos"):
        of_kind = [getattr(example, kind) for example in examples]
        media[kind] = of_kind if any(one is not None for one in of_kind) else None
    return model.to_inputs([example.text for example in examples], **media, chat=chat, answer=answer)


def _said(error: Exception) -> str:
    """Return an error in one line; those that are not about a value say their kind too."""
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


@contextmanager
def _reserved(checkpoint: str | Path | None, team: Processes) -> Iterator[Path | None]:
    """Yield the checkpoint's file, held by a lock so that no other sweep writes it. Raises ValueError where one does."""
    if checkpoint is None:
        yield None
        return
    path = with_suffix(checkpoint)
    lock = FileLock(f"{path}.lock")
    problem: str | None = None
    if team.first:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            problem = f"another sweep is writing {path}: wait for it, or name another file"
        except OSError as error:
            problem = f"a checkpoint is a file that can be written, {path} is not ({error.strerror}): name another"
    if (problem := team.gather(problem)[0]) is not None:
        raise ValueError(problem)
    try:
        yield path
    finally:
        lock.release()
