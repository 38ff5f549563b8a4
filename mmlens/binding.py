"""TransformerLens' own tools on inputs with media: they call the bridge with tokens, and the bound inputs are what runs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from mmlens.inputs import Inputs
from mmlens.liveness import HookPoints


@contextmanager
def bound(
    bridge: Any, hf_model: nn.Module, inputs: Sequence[Inputs], fed: Callable[[Inputs], dict[str, Any]], points: HookPoints
) -> Iterator[Any]:
    """Yield `bridge`, whose calls with the tokens of one of `inputs` get what is `fed` for it; see `HookedMLLM.bind`."""
    known: dict[tuple[int, ...], Inputs] = {}
    for one in inputs:
        key = tuple(one.tokens.flatten().tolist())
        if key in known and known[key].digest() != one.digest():
            raise ValueError(
                "bound inputs are told apart by their tokens, and two of these have the same tokens with different "
                "media: bind one at a time (run the clean one with model.run_with_cache first, then bind the corrupted)"
            )
        known[key] = one
    plain = type(bridge).forward

    def forward(input: Any, *args: Any, **kwargs: Any) -> Any:
        key = tuple(input.flatten().tolist()) if isinstance(input, Tensor) and not input.is_floating_point() else None
        if key is None or key not in known:
            raise ValueError("under model.bind the bridge runs the tokens of the bound inputs only; bind these inputs too")
        with points.whole_edits():
            rest = {name: value for name, value in fed(known[key]).items() if name != "input_ids"}
            return plain(bridge, input, *args, **{**rest, **kwargs})

    object.__setattr__(bridge, "forward", forward)
    named = hf_model.register_forward_pre_hook(_by_name, with_kwargs=True)
    try:
        yield bridge
    finally:
        named.remove()
        bridge.__dict__.pop("forward", None)


def _by_name(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the tokens by name: TransformerLens gives them first, where some models expect pixels."""
    return (), {**({"input_ids": args[0]} if args else {}), **kwargs}
