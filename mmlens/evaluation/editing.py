"""What an edit should make a model say, for `evaluate` to compare with what it does make it say."""

import re
from collections.abc import Sequence
from dataclasses import replace

from mmlens.data import Example
from mmlens.model import HookedMLLM
from mmlens.sweeps import encoded


def expected_after(
    model: HookedMLLM,
    examples: Sequence[Example],
    source: str,
    target: str,
    *,
    max_new_tokens: int = 16,
    batch_size: int = 8,
    chat: bool = False,
) -> list[Example]:
    """Return the examples with the gold answer that a perfect edit gives: the model's own, with `target` for `source`.

    The model is the unedited one; its answers are greedy, as those of `evaluate` are. An answer without the word (a whole
    one, whatever its case) is to stay as it is. Examples whose answer is empty are left out: there is nothing to keep. So

        examples = expected_after(model, examples, "tree", "flower")
        evaluate(model, examples, "exact_match", {"edit": edit.hooks(model)}).table()

    has, for each label, the share of examples that come out as they should: success on the edit scenes, generalisation on
    others, locality where the word was not said. Raises ValueError for an empty word. Source: the three are those of Pan et
    al. 2024 (methods B9), whose own evaluation was never released; answers that are compared whole are ours.
    """
    if not source.strip() or not target.strip():
        raise ValueError(f"an edit puts one word in the place of another, got {source!r} and {target!r}: give both")
    word = re.compile(rf"(?<!\w){re.escape(source.strip())}(?!\w)", flags=re.IGNORECASE)
    found: list[Example] = []
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        said = model.generate(encoded(model, batch, chat=chat), max_new_tokens=max_new_tokens).text
        golds = [word.sub(lambda _: target.strip(), text) for text in said]
        found += [replace(one, answers=(gold,)) for one, gold in zip(batch, golds, strict=True) if gold.strip()]
    return found
