"""What an architecture must say about itself to become a hooked model."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import transformers
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformers import AutoProcessor

from mmlens.grid import Place, Tiles
from mmlens.inputs import Modality, Row
from mmlens.media import Media


class UnsupportedModel(ValueError):
    """A model, or a setting of it, that mmlens does not know; it is named rather than guessed."""


@dataclass(frozen=True)
class Family:
    """One architecture.

    `model_class` is transformers' class (by its name, or one of ours); `takes` the media that it reads. `adapter(config)`
    returns the class that tells TransformerLens where the parts are; `renames` maps the beginnings of TransformerLens' hook
    names to ours (`vision_encoder.encoder_layers.` -> `vision.blocks.`; `{l}` is a layer's number). `check(config)` raises
    UnsupportedModel for a setting that is not understood; `encode(processor, text, media)` returns one example as a Row;
    `load_processor(**source)` returns what `encode` is given. `live_layers(config)` says how many blocks of each tower
    reach the output (a tower that it leaves out is read behind its last block, whose `hook_resid_post` then counts too).
    `dead` (never fires) and `read_only` (fires, but the model has moved on) map hook points, globs of our names, to what to
    use. `prepare(model)` changes the transformers model before it is wrapped, where its code would hide something;
    `settle(processor, config)` gives the processor what `encode` needs of the model's configuration, and raises
    UnsupportedModel where they disagree. `join(model, kwargs)` returns what `model` is called with, such that no tower runs
    twice: a point fires once in a run.

    `first_position` is what the model counts its first real position as, None where it counts by itself; `answer` what its
    `stream` numbers are at an answer's tokens; `echoes` says whether its `generate` returns the prompt too.
    """

    model_type: str
    model_class: str | type
    takes: tuple[Modality, ...]
    adapter: Callable[[Any], type[ArchitectureAdapter]]
    check: Callable[[Any], None]
    encode: Callable[[Any, str, Media], Row]
    live_layers: Callable[[Any], dict[str, int]]
    renames: Mapping[str, str] = field(default_factory=dict)
    dead: Mapping[str, str] = field(default_factory=dict)
    read_only: Mapping[str, str] = field(default_factory=dict)
    load_processor: Callable[..., Any] = AutoProcessor.from_pretrained
    prepare: Callable[[Any], None] = lambda model: None
    settle: Callable[[Any, Any], None] = lambda processor, config: None
    join: Callable[[Any, dict[str, Any]], dict[str, Any]] = lambda model, kwargs: kwargs
    first_position: int | None = 0
    answer: Mapping[str, int] = field(default_factory=dict)
    echoes: bool = True

    @property
    def loads(self) -> Any:
        """The class of its transformers model."""
        return getattr(transformers, self.model_class) if isinstance(self.model_class, str) else self.model_class

    @property
    def architecture(self) -> str:
        """The name under which TransformerLens finds the adapter: ours, so that its own stays as it is."""
        return f"mmlens:{self.model_type}"


def one_of(name: str, value: Any, known: Sequence[Any]) -> None:
    """Raise UnsupportedModel, naming the setting, unless `value` is one of the `known`."""
    if value not in known:
        raise UnsupportedModel(f"mmlens knows {name} = {', '.join(map(str, known))}; this model has {value!r}")


def with_placeholders(text: str, count: int, *, kind: str, token: str, put: str | None = None) -> str:
    """Return `text` with one `token` for each of `count` media: put in front (`put` each) where there are none.

    Raises ValueError where there are some, and not as many as media.
    """
    if count and token not in text:
        text = (token if put is None else put) * count + text
    if text.count(token) != count:
        raise ValueError(
            f"every {token} in the text stands for one {kind}: got {text.count(token)} in {text[:60]!r} and {count} "
            f"{kind}(s). Pass as many, or leave the placeholders out and they are put in front"
        )
    return text


def tile_entries(medium: Sequence[int], places: Sequence[Place]) -> dict[str, list[tuple[int, int]]]:
    """Return a row's `entries` where each medium is shown in tiles (or frames), which a tower reads in the text's order.

    `medium` is what each position of the row belongs to; a medium has a tile for each grid of its place.
    """
    counts = [len(place.grids) if isinstance(place, Tiles) else 1 for place in places]
    return {"pixel_values": [(number, counts[number]) for number in dict.fromkeys(medium) if number >= 0]}


def check_features(model: Any) -> None:
    """Raise UnsupportedModel where transformers' model does not take features of pictures and videos as they are."""
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        raise UnsupportedModel(
            "pictures and videos in one run go through the tower together, which needs a newer transformers (5.23 will do): "
            "pip install -U transformers, or ask about them apart"
        )


def special_ids(tokenizer: Any) -> list[int]:
    """Return the tokens that a tokenizer leaves out of decoded text: its named ones, and those added as special."""
    added = [index for index, token in tokenizer.added_tokens_decoder.items() if token.special]
    return [*tokenizer.all_special_ids, *added]


def label(
    tokens: Sequence[int],
    *,
    placeholders: Mapping[int, Modality],
    lengths: Mapping[Modality, Sequence[int]],
    special: Sequence[int],
) -> tuple[list[Modality], list[int]]:
    """Return what each token holds and which medium it belongs to (-1: none).

    `placeholders` are the tokens that media take the place of; `lengths` says how many positions each medium of a kind
    has, in order. Media are numbered images first, then videos, then sounds. Raises UnsupportedModel where the tokens
    have another number of placeholders: the processor's settings are then not what we think.
    """
    marks = set(special) - set(placeholders)
    modality: list[Modality] = [placeholders.get(token, "special" if token in marks else "text") for token in tokens]
    first, owners = 0, {}
    for kind in ("image", "video", "audio"):
        counts = list(lengths.get(kind, ()))
        if sum(counts) != modality.count(kind):
            raise UnsupportedModel(
                f"the processor made {modality.count(kind)} {kind} positions where {len(counts)} {kind}(s) of "
                f"{counts} positions were expected: its settings are not understood"
            )
        owners[kind] = iter([first + index for index, count in enumerate(counts) for _ in range(count)])
        first += len(counts)
    return modality, [next(owners[kind]) if kind in owners else -1 for kind in modality]
