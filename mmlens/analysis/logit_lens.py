"""The logit lens: what every position already reads as, layer by layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmlens.hooks import feed
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.results import Provenance, Result

Site = Literal["resid", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]
Lens = Callable[[int, Float[Tensor, "n d_model"]], Float[Tensor, "n d_vocab"]]
CACHED = 2**19  # logits that a CPU reads at a time: its cache holds them through all passes over them
SMOOTH = 3  # layers that a curve is averaged over before its turning points are sought


@dataclass(frozen=True, kw_only=True, repr=False)
class LogitLens(Result):
    """What the model would predict from the residual stream, or from what a sublayer adds, at every layer and position.

    At `site` "resid", row l of the layer axis is the stream that enters block l, and the last row the final stream, so the
    model's own output; at the others it is block l's. `entropy` is that of the whole prediction, in nats. `target_*` are
    about the tokens that were asked for: their log-probability (nats) and rank (0 is the top).
    """

    site: str
    tokens: Int[Tensor, "layer batch pos k"]
    log_probs: Float[Tensor, "layer batch pos k"]
    entropy: Float[Tensor, "layer batch pos"]
    targets: Int[Tensor, " target"]
    target_log_probs: Float[Tensor, "layer batch pos target"]
    target_ranks: Int[Tensor, "layer batch pos target"]

    def mean_entropy(self, where: Bool[Tensor, "batch pos"]) -> Float[Tensor, " layer"]:
        """Return the mean entropy (nats) over the `where` positions by layer: `lens.mean_entropy(inputs.mask("image"))`."""
        return self.entropy[:, where.to(self.entropy.device)].mean(-1)


@torch.no_grad()
def logit_lens(
    model: HookedMLLM,
    inputs: Inputs,
    *,
    site: Site = "resid",
    top_k: int = 10,
    targets: Sequence[int] = (),
    lens: Lens | None = None,
    chunk: int = 512,
) -> LogitLens:
    """Return top tokens and entropy of every layer and position, read through the final norm and the unembedding.

    `lens(row, stream)` reads logits from a row of the layer axis in another way (`TunedLens.lens(model)`). Only `chunk`
    positions' logits are in memory at a time, beside the run's own, which are the last row of "resid". Raises ValueError for
    another site, and UnknownHook where the model has it not (`resid_mid` of parallel blocks). Source: nostalgebraist 2020;
    by modality and at four sites in Huo et al. 2024 (methods C10).
    """
    if site not in get_args(Site):
        raise ValueError(f"a lens reads one of {', '.join(get_args(Site))}, got {site!r}")
    wanted = torch.tensor(list(targets), dtype=torch.long)
    stream, depth = site == "resid", len(model.widths["language"])
    rows: list[tuple[Tensor, ...]] = []

    def add(found: Tensor, reader: Callable[[Tensor], Tensor]) -> None:
        pieces = [_read(reader(piece), top_k, wanted.to(found.device)) for piece in found.flatten(0, 1).split(chunk)]
        rows.append(tuple(torch.cat(part).unflatten(0, found.shape[:2]).cpu() for part in zip(*pieces, strict=True)))

    def read(resid: Tensor, hook: Any) -> None:
        if lens is not None:
            add(resid, partial(lens, len(rows)))
        elif not stream or len(rows) < depth:  # the last row of the stream is what the model says itself
            add(resid, model.unembed)

    names = stream_points(model) if stream else [f"blocks.*.hook_{site}"]
    logits = model.run_with_hooks(inputs, fwd_hooks=[(name, feed(read)) for name in names])
    if stream and lens is None:
        add(logits, lambda piece: piece)
    tokens, log_probs, entropy, target_log_probs, target_ranks = (torch.stack(part) for part in zip(*rows, strict=True))
    return LogitLens(
        site=site,
        tokens=tokens,
        log_probs=log_probs,
        entropy=entropy,
        targets=wanted,
        target_log_probs=target_log_probs,
        target_ranks=target_ranks,
        provenance=Provenance.record(
            model, (inputs.digest(),), analysis="logit_lens", site=site, top_k=top_k, tuned=lens is not None
        ),
    )


def stream_points(model: HookedMLLM) -> list[str]:
    """Return the points at which the stream enters every block, and the one at which it leaves the last.

    What leaves a block is not what enters the next one where a model adds to it in between (DeepStack).
    """
    depth = model.cfg.n_layers
    return [*(f"blocks.{layer}.hook_resid_pre" for layer in range(depth)), f"blocks.{depth - 1}.hook_resid_post"]


def turning_points(curve: Float[Tensor, " layer"]) -> tuple[int, int]:
    """Return the two layers at which a curve turns: the knots of the three straight lines that fit it best.

    The curve is averaged over three neighbouring layers first; of equal fits the earlier knots count. Huo et al. 2024 read
    three stages off such curves (methods C11) and give no rule: this one is ours. Raises ValueError for fewer than five
    layers, through which any three lines pass.
    """
    if len(curve) < 5:
        raise ValueError(f"two turning points take a curve of five layers or more, got {len(curve)}")
    values = np.convolve(np.pad(curve.double().numpy(), SMOOTH // 2, mode="edge"), np.full(SMOOTH, 1 / SMOOTH), mode="valid")
    layers = np.arange(len(values), dtype=float)

    def misfit(first: int, second: int) -> float:
        lines = np.stack([np.ones_like(layers), layers, (layers - first).clip(0), (layers - second).clip(0)], axis=1)
        return float(((lines @ np.linalg.lstsq(lines, values, rcond=None)[0] - values) ** 2).sum())

    pairs = list(combinations(range(1, len(values) - 1), 2))
    misfits = [round(misfit(*pair), 12) for pair in pairs]
    return pairs[misfits.index(min(misfits))]


def _read(logits: Float[Tensor, "n d_vocab"], top_k: int, targets: Int[Tensor, " target"]) -> tuple[Tensor, ...]:
    size, step = len(logits), max(1, CACHED // logits.shape[-1]) if logits.device.type == "cpu" else len(logits)
    tokens, ranks = (logits.new_empty(size, count, dtype=torch.long) for count in (top_k, len(targets)))
    best, chosen = (logits.new_empty(size, count, dtype=torch.float32) for count in (top_k, len(targets)))
    entropy = logits.new_empty(size, dtype=torch.float32)
    for start in range(0, size, step):
        part = slice(start, start + step)
        log_probs = torch.log_softmax(logits[part], dim=-1, dtype=torch.float32)
        best[part], tokens[part] = log_probs.topk(top_k, dim=-1)
        entropy[part] = -log_probs.exp().mul_(log_probs).sum(-1)
        chosen[part] = log_probs[:, targets]
        for place in range(len(targets)):
            ranks[part, place] = (log_probs > chosen[part, place, None]).sum(-1)
    return tokens, best, entropy, chosen, ranks
