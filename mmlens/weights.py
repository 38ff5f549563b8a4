"""A module's weights as plain numbers, wherever they lie: in memory, offloaded by Accelerate, or packed by a quantiser."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class UnreadableWeight(ValueError):
    """A weight that is not in memory, or packed in a way that mmlens does not know; the module is named."""


def weight_of(module: Any, name: str = "weight") -> Tensor:
    """Return a module's parameter as plain numbers: its own where it has plain ones, else a copy, loaded or dequantised.

    A copy does not write back. Raises UnreadableWeight for a parameter that is neither.
    """
    module = _own(module)
    if hasattr(module, "base_layer"):
        raise _unreadable(module, name, "an adapter lies over it: merge the adapter into the model first")
    stored = getattr(module, name, None)
    if not isinstance(stored, Tensor):
        kept = ", ".join(own for own, _ in module.named_parameters(recurse=False)) or "no parameter"
        raise _unreadable(module, name, f"it keeps {kept} instead (quantised in a way that mmlens does not read?)")
    if stored.device.type == "meta":
        stored = _offloaded(module, name, stored)
    if unpack := _unpacker(module, stored):
        return unpack()
    if stored.dtype not in PLAIN:
        raise _unreadable(module, name, f"it holds {stored.dtype}, which stands for other numbers: load it unquantised")
    return stored


def output_rows(module: Any) -> Float[Tensor, "unit d_out"]:
    """Return the weights of a linear map, a row for each of its inputs: a view of the model's own where they are plain."""
    module = _own(module)
    weight = weight_of(module)
    if weight.ndim != 2:
        raise _unreadable(module, "weight", f"it is {list(weight.shape)}, not the matrix of a linear map")
    return weight if _is_input_first(module) else weight.T


def units(module: Any) -> int:
    """Return how many inputs a linear map has, without reading its weights."""
    module = _own(module)
    for name in ("in_features", "nx"):
        if isinstance(getattr(module, name, None), int):
            return getattr(module, name)
    return output_rows(module).shape[0]


def device_of(module: Any) -> torch.device:
    """Return the device on which a module computes, which is not where its weights lie if they are offloaded."""
    module = _own(module)
    for hook in _accelerate_hooks(module):
        if getattr(hook, "offload", False) and hook.execution_device is not None:
            chosen = hook.execution_device
            return torch.device("cuda", chosen) if isinstance(chosen, int) else torch.device(chosen)
    return next(module.parameters(recurse=False)).device


def is_packed(model: nn.Module) -> bool:
    """Return whether any of a model's parameters is packed by a quantiser."""
    owners = ((module, weight) for module in model.modules() for weight in module.parameters(recurse=False))
    return getattr(model, "hf_quantizer", None) is not None or any(_unpacker(*one) is not None for one in owners)


def is_offloaded(model: nn.Module) -> bool:
    """Return whether any of a model's weights are kept away from where they compute."""
    return any(getattr(hook, "offload", False) for module in model.modules() for hook in _accelerate_hooks(module))


@contextmanager
def readable(modules: Any) -> Iterator[None]:
    """Let the weights and biases of `modules` be plain tensors for the length of a `with` in which none of them runs."""
    changed: list[tuple[Any, str, Any]] = []
    try:
        for module in map(_own, modules):
            for name, stored in list(module._parameters.items()):
                if stored is not None and (stored.device.type == "meta" or _unpacker(module, stored) is not None):
                    changed.append((module, name, stored))
                    module._parameters[name] = nn.Parameter(weight_of(module, name), requires_grad=False)
        yield
    finally:
        for module, name, stored in changed:
            module._parameters[name] = stored


class Stored(Mapping[str, Tensor]):
    """Every tensor that a model is made of, by name, as it is stored (packed ones in their parts), loaded one at a time."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._held: dict[str, Callable[[], Tensor]] = {}
        for name, tensor in model.state_dict().items():
            if isinstance(tensor, Tensor):
                self._add(name, tensor)

    def _add(self, name: str, tensor: Tensor) -> None:
        if type(tensor) not in (Tensor, nn.Parameter) and hasattr(tensor, "__tensor_flatten__"):
            inner: Any = tensor
            for part in inner.__tensor_flatten__()[0]:
                self._add(f"{name}.{part}", getattr(inner, part))
        elif tensor.device.type == "meta":
            path, _, leaf = name.rpartition(".")
            module = self._model.get_submodule(path)
            self._held[name] = lambda: _loaded(module, leaf, tensor)
        else:
            self._held[name] = lambda: tensor

    def __getitem__(self, name: str) -> Tensor:
        return self._held[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


def versions(model: nn.Module) -> tuple[Any, ...]:
    """Return what changes when a weight in memory is edited: torch counts a tensor's edits."""
    marks: list[Any] = []
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            kept = weight
            if weight.device.type == "meta" and (source := _in_memory(module, name)) is not None:
                kept = source
            marks.append((kept.data_ptr(), kept._version) if kept.device.type != "meta" else tuple(kept.shape))
    return tuple(marks)


def _own(module: Any) -> Any:
    """Return transformers' own module, where TransformerLens' component around it was given."""
    inner = getattr(module, "_modules", {}).get("_original_component")
    return module if inner is None else inner


# ---------------------------------------------------------------- offloaded


def _accelerate_hooks(module: Any) -> list[Any]:
    hook = getattr(module, "_hf_hook", None)
    return [] if hook is None else list(getattr(hook, "hooks", (hook,)))


def _maps(module: Any) -> Iterator[Mapping[str, Tensor]]:
    for hook in _accelerate_hooks(module):
        if getattr(hook, "offload", False) and hook.weights_map is not None:
            yield hook.weights_map


def _offloaded(module: Any, name: str, meta: Tensor) -> Tensor:
    kept = _loaded(module, name, meta)
    if kept is not meta:
        return kept.to(device_of(module), meta.dtype)
    raise _unreadable(module, name, "it is on the meta device, and no hook of Accelerate says where it is kept")


def _loaded(module: Any, name: str, meta: Tensor) -> Tensor:
    """Return an offloaded tensor where it is kept, or `meta` itself where nobody keeps it."""
    for weights in _maps(module):
        try:
            return weights[name].to(meta.dtype)
        except KeyError:
            continue
    return meta


def _in_memory(module: Any, name: str) -> Tensor | None:
    """Return the tensor of an offloaded parameter where it waits in memory; None where it is on disk."""
    for weights in _maps(module):
        prefix, inner = getattr(weights, "prefix", ""), getattr(weights, "dataset", weights)
        kept = getattr(inner, "state_dict", inner)
        if isinstance(kept, dict) and isinstance(kept.get(prefix + name), Tensor):
            return kept[prefix + name]
    return None


# ---------------------------------------------------------------- packed


def _unpacker(module: Any, stored: Tensor) -> Callable[[], Tensor] | None:
    """Return what dequantises a packed weight to the numbers that the module multiplies with; None for a plain one."""
    if type(stored).__name__ == "Params4bit":
        return lambda: _from_four_bits(module, stored)
    if type(stored).__name__ == "Int8Params":
        return lambda: _from_eight_bits(module, stored)
    if type(stored) not in (Tensor, nn.Parameter) and type(stored).dequantize is not Tensor.dequantize:
        return lambda: stored.dequantize().detach()  # torchao, quanto
    return None


def _from_four_bits(module: Any, stored: Any) -> Tensor:
    """Return bitsandbytes' 4-bit weight as numbers."""
    from bitsandbytes import functional  # pyright: ignore[reportMissingImports]

    state = getattr(stored, "quant_state", None)
    if state is None:
        raise _unreadable(module, "weight", "bitsandbytes has not packed it yet: load it onto its device first")
    if getattr(state, "packing_format_for_cpu", False):  # bitsandbytes' own way back loses digits
        raise _unreadable(module, "weight", "bitsandbytes laid it out anew for this CPU: load it by mmlens' from_pretrained")
    return functional.dequantize_4bit(stored.data, state).detach()


def _from_eight_bits(module: Any, stored: Any) -> Tensor:
    """Return bitsandbytes' 8-bit weight as numbers: its scales move from the weight to the module at the first run."""
    scales = getattr(stored, "SCB", None)
    scales = getattr(getattr(module, "state", None), "SCB", None) if scales is None else scales
    if scales is None:
        raise _unreadable(module, "weight", "bitsandbytes has not packed it yet: load it onto its device first")
    return (stored.data * scales[:, None] / 127).detach()


def _is_input_first(module: Any) -> bool:
    """Return whether a linear map's weight is [in, out] (GPT-2's) rather than torch's [out, in]."""
    return isinstance(getattr(module, "nx", None), int) and isinstance(getattr(module, "nf", None), int)


def _unreadable(module: Any, name: str, why: str) -> UnreadableWeight:
    return UnreadableWeight(f"mmlens can't read {name!r} of a {type(module).__name__}: {why}")
