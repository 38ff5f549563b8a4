"""What an architecture must say about itself to become a hooked model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter

from mmlens.inputs import Row


class UnsupportedModel(ValueError):
    """A model, or a setting of it, that mmlens does not know; it is named rather than guessed."""


@dataclass(frozen=True)
class Family:
    """One architecture.

    `adapter` tells TransformerLens where the parts are; `renames` maps the beginnings of TransformerLens' hook names to
    ours (`vision_encoder.encoder_layers.` -> `vision.blocks.`); `check(config)` raises UnsupportedModel for a setting that
    is not understood; `encode(processor, text, images)` returns one example as a Row; `live_layers(config)` says how many
    blocks of each tower reach the output. `dead` (never fires) and `read_only` (fires, but the model has moved on) map hook
    points, globs of our names, to what to use.
    """

    model_type: str
    adapter: type[ArchitectureAdapter]
    renames: dict[str, str]
    dead: dict[str, str]
    read_only: dict[str, str]
    check: Callable[[Any], None]
    encode: Callable[[Any, str, Sequence[Any]], Row]
    live_layers: Callable[[Any], dict[str, int]]

    @property
    def architecture(self) -> str:
        """The name under which TransformerLens finds `adapter`: ours, so that its own stays as it is."""
        return f"mmlens:{self.model_type}"
