"""From what a user has, texts and media and answers, to rows that a model reads."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from mmlens.families import Family
from mmlens.inputs import Inputs, Row
from mmlens.media import Media, Sound, Video, media_per_row


def rows_of(
    family: Family,
    processor: Any,
    text: str | Sequence[str],
    *,
    images: Any = None,
    videos: Any = None,
    audio: Any = None,
    chat: bool = False,
    answer: str | Sequence[str] = "",
) -> list[Row]:
    """Return a row for each text, as `HookedMLLM.to_inputs` documents it."""
    texts, single = _strings(text, "text"), isinstance(text, str)
    _check_kinds(family, images=images, videos=videos, audio=audio)
    per_row = media_per_row(len(texts), single=single, images=images, videos=videos, audio=audio)
    answers = [answer] * len(texts) if isinstance(answer, str) else _strings(answer, "answer")
    if len(answers) != len(texts):
        raise ValueError(
            f"one answer per text: got {len(texts)} text(s) and {len(answers)} answer(s). Give as many, or one for all"
        )
    return [_row(family, processor, *one, chat=chat) for one in zip(texts, per_row, answers, strict=True)]


def instead(family: Family, processor: Any, inputs: Inputs, **media: Any) -> list[Row]:
    """Return the rows of `inputs` with other media in place of those of the same kind, as `with_images` documents it."""
    _check_kinds(family, **media)
    given = media_per_row(len(inputs), single=len(inputs) == 1, **media)
    rows: list[Row] = []
    for row, shown in enumerate(given):
        kinds = {"images": Image.Image, "videos": Video, "audio": Sound}
        own = {kind: tuple(m for m in inputs.media[row] if isinstance(m, of)) for kind, of in kinds.items()}
        own |= {kind: getattr(shown, kind) for kind in kinds if getattr(shown, kind)}
        kept = inputs.tokens[row][inputs.attention_mask[row].bool()].tolist()
        new = family.encode(processor, inputs.text[row], Media(**own))
        new = new.answered(inputs.tokens[row][inputs.answer[row]].tolist(), **family.answer)
        if new.tokens != kept:
            raise ValueError(
                "a counterfactual has the tokens of the original, so that positions line up; with other media row "
                f"{row} has {len(new.tokens)} positions for {len(kept)}: give media of the same number and size"
            )
        rows.append(new)
    return rows


def check_length(inputs: Inputs, config: Any) -> None:
    """Raise ValueError for more positions than the language model of `config` was made for."""
    text: Any = config.get_text_config(decoder=True)
    rope, most = getattr(text, "rope_parameters", None) or {}, getattr(text, "max_position_embeddings", None)
    stretched = rope.get("factor", 1.0)  # a table per kind of layer has none of its own
    if most is not None and inputs.tokens.shape[1] > (most := int(most * max(stretched, 1.0))):
        raise ValueError(
            f"this model reads at most {most} positions, got {inputs.tokens.shape[1]} ({inputs}): shorten the text, or "
            "give fewer or smaller media"
        )


def _check_kinds(family: Family, *, images: Any = None, videos: Any = None, audio: Any = None) -> None:
    """Raise ValueError for media of a kind that the model does not take."""
    for kind, media in {"image": images, "video": videos, "audio": audio}.items():
        if media is not None and kind not in family.takes:
            raise ValueError(f"a {family.model_type} model takes {' and '.join(family.takes)}, got {kind}: leave it out")


def _row(family: Family, processor: Any, text: str, media: Media, answer: str, *, chat: bool) -> Row:
    if not text.strip() and not media.all():
        raise ValueError("an input holds text or media, got an empty text and no media: leave that row out")
    row = family.encode(processor, _as_chat(processor, text, media) if chat else text, media)
    ids = processor.tokenizer(answer, add_special_tokens=False)["input_ids"] if answer else []
    return row.answered(ids, **family.answer)


def _as_chat(processor: Any, text: str, media: Media) -> str:
    """Return `text` as one user turn behind its media, in the processor's chat template."""
    if not getattr(processor, "chat_template", None):
        raise ValueError("this model has no chat template: leave chat out and write the whole prompt yourself")
    counts = {"image": len(media.images), "video": len(media.videos), "audio": len(media.audio)}
    content = [{"type": kind} for kind, count in counts.items() for _ in range(count)]
    turn = {"role": "user", "content": [*content, {"type": "text", "text": text}]}
    text = processor.apply_chat_template([turn], add_generation_prompt=True)
    words = processor.tokenizer
    if words.encode("a")[0] == words.bos_token_id:  # a template may begin with it too: one is enough
        text = text.removeprefix(words.bos_token)
    return text


def _strings(given: Any, what: str) -> list[str]:
    """Return one string or several as a list. Raises TypeError for anything else."""
    strings = [given] if isinstance(given, str) else list(given) if isinstance(given, (list, tuple)) else None
    wrong = next((one for one in strings if not isinstance(one, str)), None) if strings is not None else given
    if strings is None or not all(isinstance(one, str) for one in strings):
        raise TypeError(
            f"{what} is a string or a list of strings, got a {type(wrong).__name__}: tokens and bytes are decoded first"
        )
    return strings
