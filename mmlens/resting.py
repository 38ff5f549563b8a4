"""Parts of the bridge on which no hook lies, left out of a run: the model's own modules stand in, to the same bits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.generalized_components.block import BlockBridge
from transformer_lens.model_bridge.generalized_components.gated_mlp import GatedMLPBridge
from transformer_lens.model_bridge.generalized_components.linear import LinearBridge
from transformer_lens.model_bridge.generalized_components.mlp import MLPBridge
from transformer_lens.model_bridge.generalized_components.normalization import NormalizationBridge
from transformer_lens.model_bridge.generalized_components.rms_normalization import RMSNormalizationBridge

# Of these exactly: all that they do around the module that they wrap is to call hook points. A kind of our own may do more.
KINDS = (
    AttentionBridge,
    BlockBridge,
    GatedMLPBridge,
    LinearBridge,
    MLPBridge,
    NormalizationBridge,
    RMSNormalizationBridge,
)


class Rest:
    """The places in a transformers model where a component of the bridge stands in front of a module of its own.

    The bridge gets a list of its blocks of its own: there they are found by their numbers while they rest.
    """

    def __init__(self, bridge: Any, hf_model: nn.Module) -> None:
        bridge._modules["blocks"] = nn.ModuleList(bridge.blocks).train(bridge.training)
        # Hooks of TransformerLens' own, for points that never fire here; it would put them on when a block first runs.
        blocks = [module for module in hf_model.modules() if isinstance(module, BlockBridge)]
        for block in blocks:
            block._maybe_wire_capture_hooks()
        self._idle = {handle.id for block in blocks for handle in block._capture_hook_handles}
        self._places: list[tuple[dict[str, Any], str, Any, Any]] = [
            (parent._modules, key, child, child._modules["_original_component"])
            for parent in hf_model.modules()
            if not isinstance(parent, GeneralizedComponent)
            for key, child in parent._modules.items()
            if isinstance(child, GeneralizedComponent) and _may_rest(child)
        ]

    @contextmanager
    def while_idle(self) -> Iterator[None]:
        """Let components without a hook rest for the length of a run, which then costs what the plain model costs.

        A hook that is put on while the run goes counts from the next one on.
        """
        changed = []
        for modules, key, component, own in self._places:
            before, now = modules[key], component if self._is_watched(component) else own
            if now is not before and before in (component, own):  # another's module is let alone
                modules[key] = now
                changed.append((modules, key, before))
        try:
            yield
        finally:
            for modules, key, before in changed:
                modules[key] = before

    def _is_watched(self, component: Any) -> bool:
        """Return whether a hook lies on a component, or on one of its points."""
        points = [one for one in component._modules.values() if isinstance(one, HookPoint)]
        return any(
            lying and not self._idle.issuperset(lying)
            for one in (component, *points)
            for lying in (one._forward_pre_hooks, one._forward_hooks, one._backward_pre_hooks, one._backward_hooks)
        )


def _may_rest(component: GeneralizedComponent) -> bool:
    """Return whether it is of a kind that only calls points, around a module whose own numbers it gives out."""
    rounded = isinstance(component, NormalizationBridge) and not component.use_native_layernorm_autograd
    return type(component) in KINDS and not rounded and "_original_component" in component._modules
