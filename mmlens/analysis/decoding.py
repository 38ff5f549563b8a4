"""Which words a neuron writes: its output weights read by the unembedding, and whether those are words."""

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmlens.cache import gain
from mmlens.model import HookedMLLM
from mmlens.neurons import Neurons
from mmlens.organisms.pictosound.text import LEXICON as SOUNDS
from mmlens.organisms.pictoworld.text import LEXICON as PICTURES
from mmlens.results import Provenance, Result

ORGANISM_WORDS: frozenset[str] = frozenset(
    word for lexicon in (PICTURES, SOUNDS) for word in lexicon.words if word.replace("-", "").isalpha()
)
"""Every word of the organisms' worlds: the word list for their checkpoints, and for no other model."""
AT_ONCE = 1024  # neurons whose effects on the whole vocabulary are in memory together


@dataclass(frozen=True, kw_only=True, repr=False)
class Decoding(Result):
    """Each neuron's `k` tokens: the tokens, what it adds to their logits per unit of activation, and them as text.

    With a sign, effects are those of an activation of 1 of that sign.
    """

    neurons: Neurons
    tokens: Int[Tensor, "neuron k"]
    effects: Float[Tensor, "neuron k"]
    words: tuple[tuple[str, ...], ...]


@torch.no_grad()
def decode(
    model: HookedMLLM,
    neurons: Neurons,
    *,
    k: int = 10,
    sign: Float[Tensor, " neuron"] | None = None,
    largest: bool = True,
    norm: bool = False,
) -> Decoding:
    """Return the `k` tokens that each neuron's output raises most: the top of `W_out W_U`, no final norm, no bias.

    `largest=False` are those that it lowers most, the lowest first. `sign` (any numbers, their sign counts) reads a neuron
    as it acted: one that fires negatively promotes what its output weights lower, and gated activations are signed.

    `norm=True` reads through the final norm, but for its scale, which depends on the input: its gain, and of a LayerNorm the
    mean taken away. Where a norm stands between the MLP and the stream, its gain is in `W_out` in any case. Only tokens that
    the tokenizer has are returned. Raises ValueError for neurons of a tower, whose outputs are not in the stream.

    Source: Schwettmann et al. 2023, eq. 3 (methods A4), and Pan et al. 2024 (methods B1): both take the top without a norm.
    """
    W_U = model.W_U[:, : len(model.tokenizer)]
    if sign is not None and sign.shape != (len(neurons),):
        raise ValueError(f"one sign per neuron: {len(neurons)} neurons, got {list(sign.shape)}")
    if not 1 <= k <= W_U.shape[1]:
        raise ValueError(f"the tokenizer has {W_U.shape[1]} tokens, got k = {k}: take from 1 to all of them")
    directions = _directions(model, neurons, norm=norm)
    if sign is not None:
        directions = directions * sign.sign().to(directions)[:, None]
    columns = W_U.float()
    parts = [(part @ columns).topk(k, dim=-1, largest=largest) for part in directions.split(AT_ONCE)]
    effects, tokens = (torch.cat([part[which].cpu() for part in parts]) for which in (0, 1))
    return Decoding(
        neurons=neurons,
        tokens=tokens,
        effects=effects,
        words=tuple(tuple(model.to_str_tokens(row)) for row in tokens),
        provenance=Provenance.record(model, (), analysis="decode", k=k, signed=sign is not None, largest=largest, norm=norm),
    )


def interpretable(
    decoding: Decoding,
    words: Container[str] = ORGANISM_WORDS,
    *,
    least: int = 7,
    of: int = 10,
    letters: int = 3,
) -> Bool[Tensor, " neuron"]:
    """Return which neurons read as words: `least` or more of their first `of` tokens are in `words`.

    A token counts without spaces around it, as it is written or in lower case, and with `letters` letters or more; pieces
    of words do not, unless they are words. `words` is anything that knows what is `in` it; see `word_list` for one from a
    file. Raises ValueError where fewer than `of` tokens were decoded.

    Source: Schwettmann et al. 2023 (methods A5), with the SCOWL English list in place of `words`; that list is not ours to
    ship. The default is the organisms' own words.
    """
    if decoding.tokens.shape[1] < of:
        raise ValueError(f"words are counted among {of} tokens, got {decoding.tokens.shape[1]}: decode with k={of} or more")

    def is_word(token: str) -> bool:
        token = token.strip()
        return sum(map(str.isalpha, token)) >= letters and (token in words or token.lower() in words)

    return torch.tensor([sum(map(is_word, row[:of])) >= least for row in decoding.words], dtype=torch.bool)


def word_list(path: str | Path, *, encoding: str = "utf-8") -> frozenset[str]:
    """Return the words of a file with one on each line, such as /usr/share/dict/words, a SCOWL list or a Hunspell .dic.

    What follows a slash (Hunspell's flags) and lines that are empty, begin with "#" or hold no letter are left out. Raises
    ValueError where nothing is left.
    """
    lines = (line.partition("/")[0].strip() for line in Path(path).read_text(encoding=encoding).splitlines())
    found = frozenset(line for line in lines if not line.startswith("#") and any(map(str.isalpha, line)))
    if not found:
        raise ValueError(f"a word list has a word on each line, and {path} has none")
    return found


def _directions(model: HookedMLLM, neurons: Neurons, *, norm: bool) -> Float[Tensor, "neuron d_model"]:
    """Return what each neuron writes into the stream per unit of activation, or, with `norm`, into the normed stream."""
    outside = sorted(set(neurons.module) - {"language", "projector"})
    if outside:
        raise ValueError(f"only neurons that write into the stream read as words, got neurons of {', '.join(outside)}")
    W_U = model.W_U
    directions = torch.empty(len(neurons), len(W_U), device=W_U.device)
    for (module, layer), indices in neurons.indices_by_layer().items():  # one read each: a quantised one is unpacked anew
        rows = model.W_out(layer, module)
        if module == "language" and "ln2_post" in model.bridge.blocks[layer].submodules:
            rows = rows * gain(model.bridge.blocks[layer].ln2_post).to(rows.device)
        directions[indices] = rows[neurons.unit[indices].to(rows.device)].to(directions)
    if norm:
        final = model.bridge.ln_final
        if isinstance(final.original_component, nn.LayerNorm):  # it takes the stream's mean away first
            directions = directions - directions.mean(-1, keepdim=True)
        directions = directions * gain(final).to(directions)
    return directions
