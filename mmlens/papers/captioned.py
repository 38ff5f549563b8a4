"""A picture, what a model writes of it, and the tokens of the nouns in that: where both papers begin."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tqdm.auto import tqdm

from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.papers.shown import Shown, opened
from mmlens.targets import Targets, nouns
from mmlens.targets.written import continued, without_end


@dataclass(frozen=True, eq=False)
class Captioned:
    """A picture with the caption that the model wrote (greedily): `prompt`, and `whole` with the caption behind it.

    `targets` are the first tokens of its nouns, with the positions of `whole` that predict them; at least one.
    """

    shown: Shown
    prompt: Inputs
    whole: Inputs
    targets: Targets
    caption: str

    def up_to(self, model: HookedMLLM, number: int) -> Inputs:
        """Return the inputs whose last position predicts the target of that number."""
        stop = int(self.targets.position[number]) + 1
        tokens = self.whole.tokens[0, self.prompt.tokens.shape[1] : stop]
        return continued(self.prompt, tokens, model=model)


def captioned(
    model: HookedMLLM,
    pictures: Sequence[Shown],
    *,
    prompt: str,
    is_noun: Callable[[str], bool],
    max_new_tokens: int,
    progress: bool,
) -> Iterator[Captioned]:
    """Yield the pictures whose caption has a noun, one at a time."""
    for shown in tqdm(pictures, "captions", disable=not progress):
        inputs = model.to_inputs(prompt, images=opened(shown.image))
        written = model.generate(inputs, max_new_tokens=max_new_tokens)
        new = without_end(model, written.tokens[0, inputs.tokens.shape[1] :])
        if len(new):
            whole, targets = nouns(model, inputs, new[None], is_noun=is_noun)
            if len(targets):
                yield Captioned(shown, inputs, whole, targets.first(), written.text[0])
