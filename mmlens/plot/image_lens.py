"""The logit lens as a page: what every piece of a picture, sound or video reads as, layer by layer."""

from collections import Counter
from html import escape

import torch

from mmlens.analysis import LogitLens
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.plot.canvas import spelled
from mmlens.plot.html import Page, document
from mmlens.plot.image_lens_script import SCRIPT, STYLE
from mmlens.plot.stage import packed, staged, words_of
from mmlens.plot.stage_script import LAYOUT
from mmlens.plot.stage_script import SCRIPT as STAGE_SCRIPT
from mmlens.plot.stage_script import STYLE as STAGE_STYLE

NATS, ENTROPY = 2000, 4000  # steps in a nat in which log-probabilities and entropies are given: 16 bits hold 32 and 16 nats


def image_lens(
    lens: LogitLens,
    inputs: Inputs,
    *,
    model: HookedMLLM,
    row: int = 0,
    most: int = 10,
    title: str = "What every position reads as",
) -> Page:
    """Return one page, which needs no network, of what each position of a `row` reads as; `.save(path)` it, or show it.

    A layer is chosen by slider, bars or + and -: each position then shows its top word, on pictures, frames of videos and
    stretches of sounds. A position that is pointed at, clicked or reached by arrow keys tells its `most` top words with
    their probabilities, and those of every layer. A word that is chosen (from a list, or typed) is coloured where it is
    read: its probability, summed over tokens that are spelled alike, as far as it is among a position's `most` top words;
    the lens's targets are known everywhere. Raises ValueError for a lens of other inputs.
    """
    depth, batch, length, count = lens.tokens.shape
    if (batch, length) != tuple(inputs.tokens.shape):
        raise ValueError(
            f"a lens is drawn on the inputs that it read, {list(inputs.tokens.shape)}; this one is of [{batch}, {length}]: "
            "give those inputs"
        )
    k, first = min(most, count), int(inputs.attention_mask[row].argmax())
    stage = staged(inputs, row, words=words_of(model, inputs.tokens[row]))
    tokens = lens.tokens[:, row, first:, :k].cpu()
    unique, index = tokens.unique(return_inverse=True)
    spellings = [spelled(word, 40) for word in words_of(model, unique)]
    words = list(dict.fromkeys(spellings))
    place = {word: number for number, word in enumerate(words)}
    own = torch.tensor([place[word] for word in spellings])[index]
    bits = 16 if len(words) < 2**16 else 32
    targets = [
        {
            "word": spelled(word, 40),
            "nats": packed(-NATS * lens.target_log_probs[:, row, first:, number].cpu(), 16),
            "ranks": packed(lens.target_ranks[:, row, first:, number].cpu(), 32),
        }
        for number, word in enumerate(words_of(model, lens.targets))
    ]
    names = [str(layer) for layer in range(depth)]
    if lens.site == "resid":
        names[-1] = "output"
    media, of = [position - first for position in stage.media()], "positions on media"
    if not media:
        media, of = list(range(length - first)), "positions"
    common = Counter(own[:, media, 0].flatten().tolist()).most_common(200)
    data = {
        "first": first,
        "length": length - first,
        "k": k,
        "layers": names,
        "media": media,
        "of": of,
        "words": words,
        "bits": bits,
        "tokens": packed(own, bits),
        "nats": packed(-NATS * lens.log_probs[:, row, first:, :k].cpu(), 16),
        "entropy": packed(ENTROPY * lens.entropy[:, row, first:].cpu(), 16),
        "targets": targets,
        "per": {"nats": NATS, "entropy": ENTROPY},
    }
    what = "what stands in the stream before each block" if lens.site == "resid" else f"what {lens.site} of each block adds"
    options = "".join(f'<option value="{escape(words[number])}"></option>' for number, _ in common)
    body = f"""<h1>{escape(spelled(title))}</h1>
<p class="soft">The logit lens reads {escape(what)} as a prediction of the next word.
Asked: {escape(spelled(" ".join(inputs.text[row].split()), 300))}</p>
<div class="tools"><label for="layer">layer</label>
<input type="range" id="layer" min="0" max="{depth - 1}" value="{depth - 1}">
<output id="told" for="layer"></output>
<label>colour <select id="shade"><option value="top">probability of the top word</option><option value="entropy">entropy
</option><option value="none">none</option></select></label>
<label><input type="checkbox" id="written" checked> words on the picture</label>
<label>a word <input id="word" list="known" size="14" autocomplete="off" spellcheck="false"></label>
<datalist id="known">{options}</datalist><button type="button" id="clear">no word</button></div>
<div id="bars" aria-hidden="true"></div><p class="soft" id="bars-told"></p>
<p id="legend" aria-live="polite"></p><p id="chips"></p>
<div class="view-of"><div class="main">{stage.html("stage")}</div>
<aside id="panel"></aside></div>
<p class="soft">Keys: Tab to a picture or to the words, arrows from position to position, Escape to leave it, + and - for the
layer.</p>"""
    style, script = STAGE_STYLE + LAYOUT + STYLE, STAGE_SCRIPT + SCRIPT
    return Page(document(spelled(title), body, style=style, script=script, data=data))
