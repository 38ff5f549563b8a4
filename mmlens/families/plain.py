"""The plain transformers model of a hooked one: the same weights under transformers' own names."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent


def plain(hooked: Any, kind: Any) -> Any:
    """Return a model of the class `kind` that holds the weights of `hooked`, in which a bridge has replaced submodules.

    The weights are shared, not copied, and what is not saved (rotary frequencies) is not there: it is for saving.
    """
    config = copy.deepcopy(hooked.config)
    config._attn_implementation = "eager"  # which every model has; it is not saved
    with torch.device("meta"):
        model = kind(config)
    weights = {name: _tensor(hooked, name) for name in model.state_dict()}
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    if getattr(hooked, "generation_config", None) is not None:
        model.generation_config = hooked.generation_config
    if (conversions := getattr(hooked, "_weight_conversions", None)) is not None:  # of a checkpoint with older names
        model._weight_conversions = conversions
    return model


def _tensor(module: Any, name: str) -> Tensor:
    """Return the weight that transformers calls `name`, through the components that stand in for its modules."""
    for part in name.split("."):
        while isinstance(module, GeneralizedComponent):
            module = module.original_component
        own: nn.Module = module
        held = {**own._modules, **own._parameters, **own._buffers}
        module = held[part]
    return module
