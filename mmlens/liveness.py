"""What is known about hook points: which never fire, which fire too late for an edit, and what to use instead."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint, LensHandle

from mmlens.attention import BESIDE
from mmlens.families import Family
from mmlens.hooks import HookFn, module_of

# With transformers' own attention, TransformerLens' re-implementation and its opt-in points have nothing to fire them.
DEAD_WITH_NATIVE_ATTENTION = {
    "*attn.hook_result": "attn.hook_z, times W_O",
    "*hook_q_input": "attn.hook_q",
    "*hook_k_input": "attn.hook_k",
    "*hook_v_input": "attn.hook_v",
    "blocks.*.hook_attn_in": "ln1.hook_out",
    "*attn.hook_attn_in": "attn.hook_in",
    "blocks.*.hook_mlp_in": "hook_resid_mid",
    "*.attn.hook_rot_?": "attn.hook_q and attn.hook_k (before the rotation), or attn.hook_attn_scores",
    "*.attn.hook_?_normed": "attn.hook_q and attn.hook_k",
    "*.attn.hook_cos": "rotary_emb.hook_cos",
    "*.attn.hook_sin": "rotary_emb.hook_sin",
    "*attn.hook_hidden_states": "attn.hook_out",
    "rotary_emb.hook_out": "rotary_emb.hook_cos and rotary_emb.hook_sin",
}
READ_ONLY = {
    "rotary_emb.hook_in": "rotary_emb.hook_cos and rotary_emb.hook_sin",
    "*.hook_pattern_mean*": "the same module's hook_pattern",
    "*.hook_pattern_rows": "the same module's hook_pattern",
}

NamesFilter = str | Sequence[str] | Callable[[str], bool] | None
LEFT_OUT = (".hook_pattern", ".hook_attn_scores", *(f".{beside}" for beside in BESIDE))


class UnknownHook(KeyError):
    """A hook name that this model does not have."""

    def __str__(self) -> str:
        return str(self.args[0])


class InertHook(ValueError):
    """A hook on a point where it could do nothing: it never fires, or fires when the value was already used."""


def lookup(name: str, table: dict[str, str]) -> str | None:
    """Return what `table` (globs of hook names) says to use instead of `name`, or None where it says nothing."""
    return next((instead for pattern, instead in table.items() if fnmatchcase(name, pattern)), None)


def unknown(name: str, names: Iterable[str]) -> UnknownHook:
    """Return the error for a name or glob that matches nothing, with the nearest names there are."""
    near = get_close_matches(name, list(names), n=3, cutoff=0.6)
    hint = f"; the nearest are {', '.join(near)}" if near else ""
    return UnknownHook(f"this model has no hook point {name!r}{hint}. model.hook_names lists them all")


def guard(fn: HookFn, name: str, read_only: dict[str, str]) -> HookFn:
    """Return `fn`, so that it raises where what it returns can not take the activation's place at the point `name`.

    TypeError for what is no tensor, ValueError for another shape, dtype or device and for numbers that are not finite where
    they were before; where the table `read_only` has `name`, InertHook for any edit: it would be too late.
    """
    instead = lookup(name, read_only)
    if not callable(fn):
        raise TypeError(
            f"a hook is a pair (name, function); at {name} the function is a {type(fn).__name__}: give a function"
        )

    def guarded(activation: Tensor, hook: Any) -> Tensor | None:
        before = activation._version if instead else 0
        edited = fn(activation, hook=hook)
        changed = edited is not None and edited is not activation
        if instead and (changed or activation._version != before):
            raise InertHook(f"{name} can be read but not edited, the model does not use it: edit {instead} instead")
        if changed:
            _fits(activation, edited, name)
        return edited

    return guarded


def _fits(activation: Tensor, edited: Any, name: str) -> None:
    """Raise TypeError or ValueError where `edited` can not take the place of `activation`."""
    if not isinstance(edited, Tensor):
        raise TypeError(
            f"a hook returns a tensor, or None where it only reads; at {name} it returned a {type(edited).__name__}: return "
            "one of these"
        )
    if edited.shape != activation.shape:
        raise ValueError(
            f"an edit keeps the shape of {name}, {list(activation.shape)}; got {list(edited.shape)}: to set some positions "
            "or units, return a clone in which they are set"
        )
    if edited.dtype != activation.dtype or edited.device != activation.device:
        raise ValueError(
            f"an edit of {name} stays {activation.dtype} on {activation.device}; got {edited.dtype} on {edited.device}: "
            "return edited.to(activation)"
        )
    if edited.detach().isfinite().all():
        return
    broken = ~edited.detach().isfinite() & activation.detach().isfinite()
    if name.endswith("hook_attn_scores"):
        broken &= edited.detach() != -torch.inf  # how a query is kept from a key
    if broken.any():
        raise ValueError(
            f"an edit of {name} leaves finite numbers finite; got {int(broken.sum())} that are NaN or infinite, the first "
            f"at {broken.nonzero()[0].tolist()}: look at what was divided or loaded there"
        )


class Watch:
    """Which hooks fired: a hook that no run reached did nothing, and its user must hear of it."""

    def __init__(self) -> None:
        self.waiting: set[str] = set()
        self.ran = self.media = False

    def track(self, name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Return `fn`, noting when it runs."""
        self.waiting.add(name)

        def tracked(activation: Tensor, hook: Any) -> Any:
            self.waiting.discard(name)
            return fn(activation, hook=hook)

        return tracked

    def check(self) -> None:
        """Raise InertHook where the model ran and a hook did not (a tower's hook may rest where there was no picture)."""
        silent = {name for name in self.waiting if self.media or module_of(name) == "language"}
        if self.ran and silent:
            raise InertHook(f"no run reached the hook point(s) {', '.join(sorted(silent)[:4])}: these hooks did nothing")


class HookPoints:
    """The hook points of a bridge by our names, what is known of each, and hooks on them for the length of an ExitStack.

    `by_name` holds every point once; `canonical` maps each spelling (TransformerLens' and ours) to our name; `live` are the
    names of those that fire; `read_only` says what to edit instead of those that fire too late.
    """

    def __init__(self, bridge: Any, family: Family, config: Any) -> None:
        self.by_name, self.canonical, self._theirs = _named(bridge, family)
        self._dead = {**family.dead, **DEAD_WITH_NATIVE_ATTENTION}
        self.live = [name for name in self.by_name if self._instead_of(name) is None]
        self.read_only = {**READ_ONLY, **family.read_only, **_unread_blocks(family, config, self.by_name)}

    def owner(self, name: str) -> str:
        """Return the path, in the bridge, of the component that a point belongs to."""
        return self._theirs[name].rpartition(".")[0]

    def side(self, name: str) -> str:
        """Return what TransformerLens calls a point at its owner: `hook_in` and `hook_out` are the module's own."""
        return self._theirs[name].rpartition(".")[2]

    def promise(self, name: str) -> Literal["live", "read only", "dead"]:
        """Return what is known of the point: it fires and an edit counts, it fires too late for an edit, or never."""
        if self._instead_of(name) is not None:
            return "dead"
        return "live" if lookup(name, self.read_only) is None else "read only"

    def _instead_of(self, name: str) -> str | None:
        """Return what to use instead of a point that never fires (by our name or by TransformerLens'), None if it does."""
        return lookup(name, self._dead) or lookup(self._theirs[name], self._dead)

    def is_half(self, name: str) -> bool:
        """Return whether a point is the stream on its way into the MLP only: what is returned there misses the skip path."""
        return name.endswith("hook_resid_mid") and self._theirs[name].endswith("ln2.hook_in")

    def resolve(self, pattern: str) -> list[str]:
        """Return our names of the points that `pattern` (one name in any spelling, or a glob of ours) stands for.

        Raises InertHook for a point that never fires, and UnknownHook where nothing matches.
        """
        if pattern in self.canonical:
            name = self.canonical[pattern]
            if (instead := self._instead_of(name)) is not None:
                raise InertHook(f"{pattern} never fires in this model: use {instead}")
            return [name]
        matches = [name for name in self.live if fnmatchcase(name, pattern)]
        if not matches:
            raise unknown(pattern, self.canonical)
        return matches

    def choose(self, names_filter: NamesFilter) -> list[str]:
        """Return our names of the points to cache: exact names, globs, or those of which a predicate is true.

        None is every point that fires but attention patterns and scores, which would turn SDPA off, and what is made of them
        beside it (`BESIDE`).
        """
        if names_filter is None:
            return [name for name in self.live if not name.endswith(LEFT_OUT)]
        if callable(names_filter):
            return [name for name in self.live if names_filter(name)]
        patterns = [names_filter] if isinstance(names_filter, str) else names_filter
        return list(dict.fromkeys(name for pattern in patterns for name in self.resolve(pattern)))

    def put(
        self, stack: ExitStack, name: str, fn: HookFn, direction: Literal["fwd", "bwd"] = "fwd", *, prepend: bool = False
    ) -> None:
        """Put `fn` on the point `name` until `stack` unwinds; it sees `name` as `hook.name`."""
        point = self.by_name[name]
        handle = point.add_hook(fn, dir=direction, alias_names=[name], prepend=prepend)
        stack.callback(_take_off, point, handle)

    def hooked(self) -> list[str]:
        """Return the names of the points on which somebody's hooks lie now (a family's own, which stay, do not count)."""
        return [
            name
            for name, point in self.by_name.items()
            if any(not handle.is_permanent for handle in (*point.fwd_hooks, *point.bwd_hooks))
        ]

    @contextmanager
    def whole_edits(self) -> Iterator[None]:
        """Let what hooks return at `hook_resid_mid` reach the skip path, for the length of a run.

        TransformerLens' point is the MLP's input only: a tensor that a hook returns would leave the skip path as it was. An
        edit in place reaches it by itself.
        """
        with ExitStack() as stack:
            for name, point in self.by_name.items():
                if self.is_half(name) and point.fwd_hooks:
                    before, after, repair = _skip_path()
                    self.put(stack, name, before, prepend=True)
                    self.put(stack, name, after)
                    self.put(stack, name.replace("resid_mid", "resid_post"), repair, prepend=True)
            yield


def _named(bridge: Any, family: Family) -> tuple[dict[str, HookPoint], dict[str, str], dict[str, str]]:
    """Return hook points by our name, our name by every spelling, and TransformerLens' own name by ours."""

    beginnings = {re.compile(re.escape(old).replace(r"\{l\}", r"(?P<l>\d+)")): new for old, new in family.renames.items()}

    def ours(name: str) -> str:
        found = next(((new, begins) for old, new in beginnings.items() if (begins := old.match(name))), None)
        return name if found is None else found[0].format(**found[1].groupdict()) + name[found[1].end() :]

    spellings: dict[int, list[str]] = {}
    hook_dict = bridge.hook_dict
    owners = dict.fromkeys(name.rpartition(".")[0] for name in hook_dict if module_of(ours(name)) != "language")
    own = {name: point for owner in owners for name, point in _own_spellings(bridge, owner).items()}
    for name, point in hook_dict.items():
        if id(point) not in spellings or module_of(ours(name)) == "language":
            spellings.setdefault(id(point), []).append(name)
    for name, point in own.items():
        spellings[id(point)].append(name)
    points: dict[str, HookPoint] = {}
    canonical: dict[str, str] = {}
    raw: dict[str, str] = {}
    middles = {ours(name) for names in spellings.values() for name in names if name.endswith(".hook_resid_mid")}
    for names in spellings.values():
        name = ours(next((name for name in names if name.endswith(".hook_resid_mid")), names[-1]))
        if (middle := name.replace(".ln2.hook_in", ".hook_resid_mid")) not in middles:
            name = middle
        points[name], raw[name] = hook_dict[names[0]], names[0]
        canonical |= {spelling: name for old in names for spelling in (old, ours(old))} | {name: name}
    return points, canonical, raw


def _own_spellings(bridge: Any, owner: str) -> dict[str, HookPoint]:
    """Return what a tower's component itself calls its points.

    TransformerLens' list has more: the language model's spellings for all names that end alike, a tower's too.
    """
    try:
        component = bridge.get_submodule(owner)
    except AttributeError:
        return {}
    points = {alias: getattr(component, alias, None) for alias in getattr(component, "hook_aliases", {})}
    return {f"{owner}.{alias}": point for alias, point in points.items() if isinstance(point, HookPoint)}


def _unread_blocks(family: Family, config: Any, names: Iterable[str]) -> dict[str, str]:
    """Return a table of the points in a tower behind what the model reads from it: there, edits come too late.

    transformers records a block's output inside the block, so the last block's own `hook_resid_post` is too late as well.
    """
    table: dict[str, str] = {}
    for module, live in family.live_layers(config).items():
        for name in names:
            if name.startswith(f"{module}.blocks."):
                layer, point = name.split(".")[2:4]
                if int(layer) >= live or (int(layer) == live - 1 and point in ("hook_resid_post", "hook_resid_mid")):
                    table[name] = "projector.hook_in"
    return table


def _skip_path() -> tuple[HookFn, HookFn, HookFn]:
    """Return what to run before and after the hooks of a `hook_resid_mid`, and then at its `hook_resid_post`."""
    came: list[Tensor] = []
    delta: list[Tensor] = []

    def before(activation: Tensor, hook: Any) -> None:
        came[:] = [activation]

    def after(activation: Tensor, hook: Any) -> None:
        if (first := came.pop()) is not activation:
            delta.append(activation - first)

    def repair(activation: Tensor, hook: Any) -> Tensor | None:
        return activation + delta.pop() if delta else None

    return before, after, repair


def _take_off(point: HookPoint, handle: LensHandle) -> None:
    """Remove a hook from its point, as torch and as TransformerLens count them."""
    handle.hook.remove()
    point.fwd_hooks = [other for other in point.fwd_hooks if other is not handle]
    point.bwd_hooks = [other for other in point.bwd_hooks if other is not handle]
