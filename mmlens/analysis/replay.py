"""A run that is kept, so that of an edited run only what the edit changes is computed.

An edit at a layer and a position leaves the layers before it as they were, and so all positions that do not see it. What a
run was at those is kept: the stream before every block, and every block's keys and values. Blocks are the model's own, with
its own hook points; they are called with the stream from some position on, and with the keys and values of the positions
before it, as generation calls them.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmlens.hooks import Hook
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM

CACHE_NAMES = ("cache", "past_key_values")  # transformers' newer name and its older one
Change = Callable[[Float[Tensor, "batch ..."], int], None]


@dataclass(frozen=True)
class Edit:
    """What an edited run does differently: `changes[name]` is what happens at the hook point of that name.

    A change is given the activation of some neighbouring positions (a copy) and the one behind the last of them, and sets in
    it what it has to. `layer` is the first block that comes out different, at the positions of `span` (the first, and the
    one behind the last); behind that block, positions from `start` on can be different. `entering` are those at which what
    enters that block is different already, None where any can be.
    """

    layer: int
    span: tuple[int, int]
    start: int
    changes: Mapping[str, Change]
    entering: tuple[int, int] | None = None


@dataclass(frozen=True)
class Replay:
    """One run of `model` on `inputs`, kept layer by layer; `logits` are its own.

    `streams[l]` enters block l, the last leaves the last block; `between[l]` is what is added behind block l (DeepStack).
    `maps[l]` are its queries, keys and values as their linear maps made them, where each has one of its own.
    `starts[p]` is the first position that an edit at position p can reach: p itself where attention is causal, the first of
    its picture where image positions see each other.
    """

    model: HookedMLLM
    logits: Float[Tensor, "batch pos d_vocab"]
    streams: list[Float[Tensor, "batch pos d_model"]]
    between: list[Tensor | None]
    maps: list[dict[str, Float[Tensor, "batch pos out"]]]
    keys: list[tuple[Tensor, ...]]
    calls: list[dict[str, Any]]
    starts: Int[Tensor, " pos"]

    @torch.no_grad()
    def edited(
        self, edits: Sequence[Edit], *, last: bool, chunk: int
    ) -> Iterator[tuple[int, int, Float[Tensor, "batch pos d_vocab"]]]:
        """Yield each edit's number, a position, and the logits of its run from that position on.

        `last`: the last position's only. About `chunk` positions are computed at a time; edits that start at one position
        share their blocks, from the layer on at which each begins.
        """
        rows, length = self.streams[0].shape[:2]
        order = sorted(range(len(edits)), key=lambda one: (edits[one].start, edits[one].layer))
        for start, group in groupby(order, key=lambda one: edits[one].start):
            numbers, most = list(group), max(1, chunk // (rows * (length - start)))
            for first in range(0, len(numbers), most):
                streams = self._streams({one: edits[one] for one in numbers[first : first + most]}, start, last=last)
                for number, stream in streams:
                    yield number, length - stream.shape[1], self.model.unembed(stream)

    def onward(self, layer: int, edits: Sequence[Edit]) -> Float[Tensor, "run pos d_model"]:
        """Return the final stream of each edited run, its rows one after the other, all computed from block `layer` on.

        A gradient passes, to whatever a change puts in.
        """
        stream = self.streams[layer].repeat(len(edits), 1, 1)
        for number in range(layer, len(self.calls)):
            stream = self._block(number, stream, 0, edits)
            if (added := self.between[number]) is not None:
                stream = stream + added.repeat(len(edits), 1, 1)
        return stream

    def block(self, layer: int, stream: Float[Tensor, "run pos d_model"], hooks: Sequence[Hook]) -> None:
        """Run a block on some streams, each as long as the kept run's and a whole number of its batches, under `hooks`."""
        runs = len(stream) // len(self.streams[layer])
        call = self.calls[layer]
        arguments = {name: _Attended() if name in CACHE_NAMES else value for name, value in call.items()}
        arguments |= _sliced(call, (0, stream.shape[1]), self.streams[layer].shape, runs, stream.device)
        with ExitStack() as stack:
            for name, fn in hooks:
                for point in self.model.points.resolve(name):
                    self.model.points.put(stack, point, fn)
            self.model.bridge.blocks[layer](stream.to(self.streams[layer]), **arguments)

    def _streams(self, edits: dict[int, Edit], start: int, *, last: bool) -> Iterator[tuple[int, Tensor]]:
        """Yield the number of each edited run and its final stream [batch, pos, d_model], from `start` on or the last."""
        depth, running = len(self.calls), list[int]()
        rows = len(self.streams[0])
        stream = self.streams[0][:0, start:]
        for layer in range(min(edit.layer for edit in edits.values()), depth):
            at_end = last and layer == depth - 1
            entering = self.streams[layer][:, start:]
            fresh = {number: edit for number, edit in edits.items() if edit.layer == layer}
            wide = [number for number, edit in fresh.items() if edit.span == (start, self.streams[0].shape[1])]
            narrow = [number for number in fresh if number not in wide]
            running += wide
            stream = torch.cat([stream.to(entering.device), entering.repeat(len(wide), 1, 1)])
            if running:
                run = self._last if at_end else self._block
                stream = run(layer, stream, start, [edits[number] for number in running])
                if (added := self.between[layer]) is not None:
                    stream = stream + added[:, start:].repeat(len(running), 1, 1)
            if narrow:
                own = self._narrow(layer, start, [edits[number] for number in narrow], last=at_end)
                stream = torch.cat([stream, own]) if running else own
                running += narrow
        yield from zip(running, stream.split(rows), strict=True)

    def _narrow(self, layer: int, start: int, edits: Sequence[Edit], *, last: bool) -> Float[Tensor, "run pos d_model"]:
        """Return the stream behind block `layer` from `start` on, for edits that change it at a few positions only."""
        length = self.streams[layer].shape[1]
        first, stop = min(edit.span[0] for edit in edits), max(edit.span[1] for edit in edits)
        if last:
            start, first, stop = length - 1, length - 1, length
        out = self._block(layer, self.streams[layer][:, first:stop].repeat(len(edits), 1, 1), first, edits)
        if (added := self.between[layer]) is not None:
            out = out + added[:, first:stop].repeat(len(edits), 1, 1)
        stream = self.streams[layer + 1][:, start:].to(out.device).repeat(len(edits), 1, 1)
        stream[:, first - start : stop - start] = out
        return stream

    def _last(self, layer: int, stream: Tensor, start: int, edits: Sequence[Edit]) -> Float[Tensor, "run 1 d_model"]:
        """Return what the last block makes of the last position: of all others it needs keys and values only."""
        attended = _Attended(self.keys[layer], start, stop=True)
        with suppress(_Enough):
            self._block(layer, stream, start, edits, attended)
        whole = _Attended(attended.whole, self.streams[layer].shape[1] - 1)
        return self._block(layer, stream[:, -1:], whole.start, edits, whole)

    def _block(
        self,
        layer: int,
        stream: Float[Tensor, "run pos d_model"],
        start: int,
        edits: Sequence[Edit],
        attended: "_Attended | None" = None,
    ) -> Float[Tensor, "run pos d_model"]:
        """Return what a block makes of the stream of some positions from `start` on, with each edit in its own run.

        It attends to what `attended` holds, by default the kept run's keys and values at all other positions.
        """
        attended = _Attended(self.keys[layer], start) if attended is None else attended
        arguments = {name: attended if name in CACHE_NAMES else value for name, value in self.calls[layer].items()}
        span = (start, start + stream.shape[1])
        arguments |= _sliced(self.calls[layer], span, self.streams[layer].shape, len(edits), stream.device)
        with ExitStack() as stack:
            for name in {name for edit in edits for name in edit.changes if int(name.split(".")[1]) == layer}:
                self.model.points.put(stack, name, _changing(name, span[1], edits))
            stack.enter_context(self.model.points.whole_edits())
            stack.enter_context(self._known(layer, span, edits, queries=not attended.stop))
            return _stream_of(self.model.bridge.blocks[layer](stream, **arguments))

    @contextmanager
    def _known(self, layer: int, span: tuple[int, int], edits: Sequence[Edit], *, queries: bool) -> Iterator[None]:
        """Let a block's query, key and value maps take from the kept run what is the same there, and skip what nobody needs.

        What enters the block is known of the last of `edits`, which begin here, but for the positions that they enter with.
        """
        fresh = [edit.entering for edit in edits if edit.layer == layer]
        places = [entering for entering in fresh if entering is not None] if None not in fresh else []
        first, stop = min((a for a, _ in places), default=0), max((b for _, b in places), default=0)
        chosen = slice(max(first - span[0], 0), max(min(stop, span[1]) - span[0], 0))
        own = (len(edits) - len(places)) * len(self.streams[layer])
        linears = self.model.bridge.blocks[layer].attn.submodules
        with ExitStack() as stack:
            for name, kept in self.maps[layer].items():
                linear = linears[name].original_component
                if name == "q" and not queries:
                    stack.enter_context(_instead(linear, partial(_nothing, kept.shape[-1])))
                elif places:
                    here = kept[:, span[0] : span[1]].repeat(len(places), 1, 1)
                    stack.enter_context(_instead(linear, partial(_partly, linear.forward, here, own, chosen)))
            yield


@torch.no_grad()
def record(model: HookedMLLM, inputs: Inputs) -> Replay:
    """Return a run on `inputs`, kept: its stream, queries, keys and values in every layer.

    Raises ValueError where hooks lie on the model, which would see a part of the positions later on, and NotImplementedError
    for blocks that are called in a way that this does not know.
    """
    if hooked := model.points.hooked():
        raise ValueError(
            f"hooks of yours would see a part of the positions, when parts of a run are computed again; there are some on "
            f"{', '.join(hooked[:3])}: leave the `with model.hooks(...)` first"
        )
    streams: list[Tensor] = []
    outs: list[Tensor] = []
    calls: list[dict[str, Any]] = []
    kept: list[_Attended] = []
    maps: list[dict[str, Tensor]] = [{} for _ in model.bridge.blocks]

    def mapped(layer: int, name: str, linear: Any, args: Any, out: Tensor) -> None:
        maps[layer][name] = out

    def entering(block: Any, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        names = inspect.signature(block.original_component.forward).parameters
        call = {**dict(zip(names, args, strict=False)), **given}
        streams.append(call.pop(next(iter(names))))
        calls.append(_known(call, streams[-1].shape))
        kept.append(_Attended())
        return (streams[-1],), {name: kept[-1] if name in CACHE_NAMES else value for name, value in call.items()}

    def leaving(block: Any, args: Any, out: Any) -> None:
        outs.append(_stream_of(out))

    with ExitStack() as stack:
        for layer, block in enumerate(model.bridge.blocks):
            for name in {"q", "k", "v"} & set(block.attn.submodules):
                linear = block.attn.submodules[name].original_component
                stack.callback(linear.register_forward_hook(partial(mapped, layer, name)).remove)
            stack.callback(block.register_forward_pre_hook(entering, with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(leaving).remove)
        logits = model(inputs)
    return Replay(
        model=model,
        logits=logits,
        streams=[*streams, outs[-1]],
        between=[
            None if torch.equal(out, after.to(out.device)) else after.to(out.device) - out
            for out, after in zip(outs, [*streams[1:], outs[-1]], strict=True)
        ],
        maps=maps,
        keys=[attended.whole for attended in kept],
        calls=calls,
        starts=_starts([call.get("attention_mask") for call in calls], inputs.attention_mask.bool()),
    )


class _Enough(Exception):
    """Raised where a block's keys and values are all that was wanted."""


class _Attended:
    """In place of transformers' cache: the `whole` keys and values, `kept` ones with a block's new ones from `start` on."""

    def __init__(self, kept: tuple[Tensor, ...] | None = None, start: int = 0, *, stop: bool = False) -> None:
        self.kept, self.start, self.stop = kept, start, stop
        self.whole: tuple[Tensor, ...] = ()

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, ...]:
        """Return all keys and values [run, kv_head, pos, d_head]."""
        new = (key, value)
        self.whole = new if self.kept is None else tuple(map(self._set_in, self.kept, new))
        if self.stop:
            raise _Enough
        return self.whole

    def _set_in(self, kept: Tensor, new: Tensor) -> Tensor:
        count, length = new.shape[2], kept.shape[2]
        if count == length:
            return new
        whole, stop = new.new_empty(*new.shape[:2], length, new.shape[3]), self.start + count
        by_run, kept = whole.unflatten(0, (-1, len(kept))), kept.to(new.device)
        by_run[..., : self.start, :], by_run[..., stop:, :] = kept[:, :, : self.start], kept[:, :, stop:]
        whole[:, :, self.start : stop] = new
        return whole


def _changing(name: str, stop: int, edits: Sequence[Edit]) -> Callable[..., Tensor]:
    """Return the hook that lets each edit change its own run's rows of an activation of positions up to `stop`."""

    def change(activation: Tensor, hook: Any) -> Tensor:
        edited = activation.clone()
        runs = edited.unflatten(0, (len(edits), -1))
        for number, edit in enumerate(edits):
            if name in edit.changes:
                edit.changes[name](runs[number], stop)
        return edited

    return change


@contextmanager
def _instead(linear: Any, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let a linear map do something else; what it had of its own (accelerate's way of loading weights) comes back."""
    had = vars(linear).get("forward")
    linear.forward = forward
    try:
        yield
    finally:
        del linear.forward
        if had is not None:
            linear.forward = had


def _partly(
    compute: Callable[[Tensor], Tensor],
    kept: Float[Tensor, "row pos out"],
    own: int,
    places: slice,
    stream: Float[Tensor, "_ pos d_model"],
) -> Float[Tensor, "_ pos out"]:
    """Return a linear map of a stream whose rows behind the first `own` are mapped to `kept`, but for some `places`."""
    if places.start < places.stop:
        kept[:, places] = compute(stream[own:, places])
    return torch.cat([compute(stream[:own]), kept]) if own else kept


def _nothing(width: int, stream: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos out"]:
    return stream.new_zeros(1).expand(*stream.shape[:-1], width)


def _stream_of(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def _known(call: dict[str, Any], shape: Sequence[int]) -> dict[str, Any]:
    """Return the arguments of a block. Raises NotImplementedError where one of them is not understood."""
    _sliced(call, (0, shape[1]), shape, 1, None)
    if not set(CACHE_NAMES) & set(call):
        raise NotImplementedError(f"a block without a cache among its arguments ({', '.join(call)}) can't be replayed")
    return call


def _sliced(
    call: dict[str, Any], span: tuple[int, int], shape: Sequence[int], runs: int, device: torch.device | None
) -> dict[str, Any]:
    """Return a block's arguments that speak of positions, for those of `span`, in as many `runs` of the batch.

    Where rows share an argument (a first axis of 1), it stays so.
    """
    rows, length = shape[0], shape[1]

    def part(tensor: Tensor, positions: int, batch: int) -> Tensor:
        if tensor.shape[positions] != length:
            raise NotImplementedError(f"an argument {list(tensor.shape)} of a block of {length} positions")
        own = tensor.narrow(positions, span[0], span[1] - span[0])
        repeats = [1] * tensor.ndim
        if -batch <= tensor.ndim and tensor.shape[batch] == rows:
            repeats[batch] = runs
        return own.repeat(repeats) if runs > 1 and rows > 1 else own

    found: dict[str, Any] = {}
    for name, value in call.items():
        if name == "attention_mask":
            found[name] = _causal(span, length, device) if value is None else part(value, -2, 0)
        elif name == "position_embeddings":
            found[name] = tuple(part(one, -2, -3) for one in value)
        elif name in ("position_ids", "cache_position"):
            found[name] = None if value is None else part(value, -1, -2)
        elif isinstance(value, Tensor):
            raise NotImplementedError(f"blocks with a tensor argument {name!r} can't be replayed: its axes are not known")
    return found


def _causal(span: tuple[int, int], length: int, device: torch.device | None) -> Bool[Tensor, "1 1 query key"] | None:
    """Return the mask that None stands for where all positions are computed; a single last query needs none."""
    if span in ((0, length), (length - 1, length)):
        return None
    return torch.ones(span[1] - span[0], length, dtype=torch.bool, device=device).tril(span[0])[None, None]


def _starts(masks: Sequence[Tensor | None], real: Bool[Tensor, "batch pos"]) -> Int[Tensor, " pos"]:
    """Return the first position that an edit at each position can reach, over all layers and rows."""
    length = real.shape[1]
    first = torch.arange(length)
    for mask in {id(mask): mask for mask in masks if mask is not None}.values():
        sees = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        sees = (sees.any(1) & real.to(sees.device)[:, :, None]).any(0).cpu()  # [query, key]
        first = torch.minimum(first, torch.where(sees.any(0), sees.int().argmax(0), length))
    reach = first.flip(0).cummin(0).values.flip(0)  # what is computed is a whole end of the row: all of it reaches on
    while not torch.equal(further := reach[reach], reach):
        reach = further
    return reach
