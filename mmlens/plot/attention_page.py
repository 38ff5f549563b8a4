"""Attention as a page: where a position looks, on pictures, sounds and videos, by layer and head."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmlens.analysis import AttentionRows, AttentionSinks
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.plot.attention_page_script import SCRIPT, STYLE
from mmlens.plot.canvas import spelled
from mmlens.plot.html import Page, document
from mmlens.plot.stage import group_names, packed, staged, words_of
from mmlens.plot.stage_script import LAYOUT
from mmlens.plot.stage_script import SCRIPT as STAGE_SCRIPT
from mmlens.plot.stage_script import STYLE as STAGE_STYLE

LEAST = 1e-7  # the smallest share that is told from none
ROOM = 2_000_000  # bytes that the shares of single heads may take, before they are left out


def attention_page(
    rows: AttentionRows,
    inputs: Inputs,
    *,
    model: HookedMLLM,
    row: int = 0,
    sinks: AttentionSinks | None = None,
    groups: Mapping[str, Sequence[tuple[int, int]]] | None = None,
    title: str = "Where it looks",
) -> Page:
    """Return one page, which needs no network, of where the queries of a `row` look; `.save(path)` it, or show it.

    A query, a layer and a head (or the mean of the heads) are chosen, or one of `groups` of heads, (layer, head) each, whose
    mean is shown: media are coloured at their own resolution, and a table says how much each kind of position gets. A map of
    all layers and heads shows which of them look at what. Keys that are `sinks` are crossed out, and left out of the colours
    where that is ticked; nothing is left out of the numbers. Shares of single heads are within 0.02 % of their value,
    or 4 % where there are many; where even so they do not fit, the page has means alone, and says so: give `rows` of fewer
    queries, layers or heads. Raises ValueError for rows or sinks of other inputs, of a tower, or without the row's query,
    and for heads that are not in `rows`.
    """
    depth, batch, _, _, length = rows.pattern.shape
    if rows.modality is None or (batch, length) != tuple(inputs.tokens.shape):
        raise ValueError(
            f"attention is drawn on the inputs that it was measured on, in the language model: these are "
            f"{list(inputs.tokens.shape)}, its keys [{batch}, {length}]: give those inputs"
        )
    asked = rows.queries[row] >= 0
    positions = rows.queries[row][asked].tolist()
    if not positions:
        raise ValueError(f"row {row} has no query: choose positions of it for attention_rows")
    pattern = rows.pattern[:, row][:, :, asked].float().cpu()
    words = words_of(model, inputs.tokens[row])
    stage = staged(inputs, row, words=words)
    masks, crossed = _masks(inputs, row), None
    if sinks is not None:
        if sinks.drawn.shape[1] != batch or sinks.drawn.shape[-1] != length or set(rows.layers) - set(sinks.layers):
            raise ValueError(
                f"sinks are of the same inputs [{batch}, {length}] and of at least the layers {list(rows.layers)}, got "
                f"{[sinks.drawn.shape[1], sinks.drawn.shape[-1]]} and {list(sinks.layers)}: measure them by "
                "attention_sinks(model, inputs)"
            )
        crossed = sinks.where()[[sinks.layers.index(layer) for layer in rows.layers], row].cpu()
    size = pattern.numel()
    bits: Literal[8, 16, 32] = 16 if 2 * size <= ROOM else 8
    single = size <= ROOM
    data = {
        "length": length,
        "queries": [{"position": p, "told": _told(words, p)} for p in positions],
        "layers": list(rows.layers),
        "heads": list(rows.heads),
        "media": stage.media(),
        "least": LEAST,
        "mean": {"bits": 16, "values": _coded(pattern.mean(1), 16)},
        "single": {"bits": bits, "values": _coded(pattern, bits)} if single else None,
        "names": [*masks, *(["sinks"] if crossed is not None else [])],
        "counts": [int(mask.sum()) for mask in masks.values()],
        "shares": {
            "mean": packed(65535 * _shares(pattern.mean(1)[:, None], masks, crossed), 16),
            "single": packed(65535 * _shares(pattern, masks, crossed), 16),
        },
        "sinks": None if crossed is None else [layer.nonzero()[:, 0].tolist() for layer in crossed],
        "groups": [_group(name, own, rows, pattern, masks, crossed) for name, own in (groups or {}).items()],
    }
    queries = "".join(
        f'<option value="{n}"{" selected" if n == len(positions) - 1 else ""}>{escape(_told(words, p))}</option>'
        for n, p in enumerate(positions)
    )
    kinds = '<option value="mean">mean of the heads</option>'
    kinds += "".join(f'<option value="group{n}">{escape(spelled(name))}</option>' for n, name in enumerate(groups or {}))
    kinds += "".join(f'<option value="{n}">head {head}</option>' for n, head in enumerate(rows.heads)) if single else ""
    without = "" if single else f" (Single heads are left out: their {size:,} shares are too many for a page.)"
    tick = '<label><input type="checkbox" id="without"> leave sinks out of the colours</label>' if sinks is not None else ""
    body = f"""<h1>{escape(spelled(title))}</h1>
<p class="soft">Asked: {escape(spelled(" ".join(inputs.text[row].split()), 300))}{without}</p>
<div class="tools"><label>looks from <select id="query">{queries}</select></label>
<label for="layer">layer</label><input type="range" id="layer" min="0" max="{depth - 1}" value="{depth // 2}">
<output id="told" for="layer"></output><label>head <select id="head">{kinds}</select></label>{tick}</div>
<p id="legend" aria-live="polite"></p>
<div class="view-of"><div class="main">{stage.html("stage")}</div>
<aside><h2 id="what"></h2><table id="shares"></table><p id="here"></p>
<h3 id="map-told"></h3><label class="soft">of <select id="kind"></select></label><div id="map"></div></aside></div>
<p class="soft">Keys: Tab to a picture or to the words, arrows from position to position, Escape to leave it, + and - for the
layer, [ and ] for the head, , and . for the query.</p>"""
    style, script = STAGE_STYLE + LAYOUT + STYLE, STAGE_SCRIPT + SCRIPT
    return Page(document(spelled(title), body, style=style, script=script, data=data))


def _told(words: Sequence[str], position: int) -> str:
    """Return which query this is, in words: its token, and the one that follows it."""
    told = f"{position}: {spelled(words[position], 20)}"
    return told + (f" (before {spelled(words[position + 1], 20)})" if position + 1 < len(words) else " (the last)")


def _masks(inputs: Inputs, row: int) -> dict[str, Bool[Tensor, " key"]]:
    """Return the kinds of keys of a row whose shares are told: each medium, and the words."""
    media = {name: (inputs.medium[row] == number).cpu() for number, name in enumerate(group_names(inputs, row))}
    taken = torch.stack([*media.values(), torch.zeros(inputs.tokens.shape[1], dtype=torch.bool)]).any(0)
    others = {kind: inputs.mask(kind)[row].cpu() & ~taken for kind in ("text", "special")}
    answer = inputs.answer[row].cpu()
    if bool(answer.any()):
        others = {"text": others["text"] & ~answer, "answer": answer & ~taken, "special": others["special"] & ~answer}
    return media | {name: mask for name, mask in others.items() if bool(mask.any())}


def _shares(
    pattern: Float[Tensor, "layer head query key"],
    masks: Mapping[str, Bool[Tensor, " key"]],
    crossed: Bool[Tensor, "layer key"] | None,
) -> Float[Tensor, "layer head query group"]:
    """Return how much each kind of keys gets; sinks, if any, come last."""
    found = [pattern[..., mask].sum(-1) for mask in masks.values()]
    if crossed is not None:
        found.append(torch.einsum("lhqk,lk->lhq", pattern, crossed.float()))
    return torch.stack(found, dim=-1)


def _group(
    name: str,
    own: Sequence[tuple[int, int]],
    rows: AttentionRows,
    pattern: Float[Tensor, "layer head query key"],
    masks: Mapping[str, Bool[Tensor, " key"]],
    crossed: Bool[Tensor, "layer key"] | None,
) -> dict[str, Any]:
    """Return the mean of a group of heads; its sinks are those of its layers, each with its own."""
    if not own or any(layer not in rows.layers or head not in rows.heads for layer, head in own):
        raise ValueError(
            f"a group of heads is (layer, head) of the layers {list(rows.layers)} and heads {list(rows.heads)}, "
            f"{spelled(name)!r} is {list(own)}: choose among these, or measure more"
        )
    at = [(rows.layers.index(layer), rows.heads.index(head)) for layer, head in own]
    chosen = torch.stack([pattern[layer, head] for layer, head in at])[:, None]
    sinks = None if crossed is None else crossed[[layer for layer, _ in at]]
    return {
        "name": spelled(name),
        "heads": [f"L{layer}H{head}" for layer, head in own],
        "values": _coded(chosen.mean(0)[0], 16),
        "shares": packed(65535 * _shares(chosen, masks, sinks).mean(0)[0], 16),
        "sinks": None if sinks is None else sinks.any(0).nonzero()[:, 0].tolist(),
    }


def _coded(shares: Tensor, bits: Literal[8, 16, 32]) -> str:
    """Return shares on a logarithmic scale from `LEAST` (1) to 1 (the largest code); smaller ones are 0."""
    most = 2**bits - 1
    code = most + (most - 1) * shares.double().clamp(min=LEAST).log() / -math.log(LEAST)
    return packed(code.where(shares >= LEAST, 0.0), bits)
