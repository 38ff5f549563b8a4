"""Do projected images already mean words? The tokens whose input embeddings lie nearest to what enters the stream."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import ks_2samp
from torch import Tensor
from torch.nn.functional import normalize

from mmlens.analysis.components import decompose
from mmlens.inputs import MEDIA, Inputs
from mmlens.model import HookedMLLM
from mmlens.results import Provenance, Result


@dataclass(frozen=True, kw_only=True, repr=False)
class NearestTokens(Result):
    """The nearest tokens of each vector, nearest first, their cosines, and as text; and the same of random vectors.

    `controls` are the cosines of random vectors with their own nearest token: `"norm"`, of a random direction and the
    vectors' own lengths, and `"gaussian"`, drawn around the embeddings' mean with their deviation in each dimension.
    `ks_statistic` and `ks_p` are of the two-sided Kolmogorov-Smirnov test between the vectors' best cosines and a
    control's. It takes vectors as independent, which positions of one picture are not: read its p as a lower bound.
    """

    tokens: Int[Tensor, "vector k"]
    cosines: Float[Tensor, "vector k"]
    words: tuple[tuple[str, ...], ...]
    where: Bool[Tensor, "batch pos"] | None
    controls: dict[str, Float[Tensor, " control"]]
    ks_statistic: dict[str, float]
    ks_p: dict[str, float]


@torch.no_grad()
def nearest_tokens(
    model: HookedMLLM,
    inputs: Inputs | Float[Tensor, "vector d_model"],
    *,
    k: int = 5,
    where: Bool[Tensor, "batch pos"] | None = None,
    space: Literal["embed", "unembed"] = "embed",
    controls: int = 1000,
    seed: int = 0,
    chunk: int = 8192,
) -> NearestTokens:
    """Return the `k` tokens of highest cosine with what is merged into the stream at the `where` positions.

    `where` defaults to the positions of images and other media; vectors may be given instead of inputs. Learned position
    embeddings are not in it. `space` is the input embedding, or the unembedding. Only tokens that the tokenizer has are
    looked at, `chunk` of them at a time. `controls` random vectors of each kind are looked up alike. Source: Schwettmann et
    al. 2023, section 3.1 (methods A8), who do not say how their random vectors are distributed, and score the five words
    against the image where this scores the cosine itself.
    """
    if isinstance(inputs, Inputs):
        where = inputs.mask(*MEDIA) if where is None else where
        vectors = decompose(model, inputs, where, layer=0).parts[0]  # "embed"
    elif where is not None:
        raise ValueError("`where` chooses positions of inputs, got vectors: choose among those before")
    else:
        vectors = inputs.float()
    if not len(vectors):
        raise ValueError("there is nothing to look up: the inputs hold no media, or no position is chosen in `where`")
    rows = (model.W_E if space == "embed" else model.W_U.T)[: len(model.tokenizer)]
    if not 1 <= k <= len(rows):
        raise ValueError(f"the tokenizer has {len(rows)} tokens, got k = {k}: take from 1 to all of them")
    if controls < 1:
        raise ValueError(f"vectors are compared with at least one random one of each kind, got controls = {controls}")
    cosines, tokens = _nearest(vectors, rows, k, chunk)
    random = _random(vectors, rows, controls, seed, chunk)
    best = {kind: _nearest(drawn, rows, 1, chunk)[0][:, 0] for kind, drawn in random.items()}
    tests: dict[str, Any] = {kind: ks_2samp(cosines[:, 0].numpy(), drawn.numpy()) for kind, drawn in best.items()}
    return NearestTokens(
        tokens=tokens,
        cosines=cosines,
        words=tuple(tuple(model.to_str_tokens(row)) for row in tokens),
        where=None if where is None else where.cpu(),
        controls=best,
        ks_statistic={kind: float(test.statistic) for kind, test in tests.items()},
        ks_p={kind: float(test.pvalue) for kind, test in tests.items()},
        provenance=Provenance.record(
            model,
            (inputs.digest(),) if isinstance(inputs, Inputs) else (),
            seed=seed,
            analysis="nearest_tokens",
            k=k,
            space=space,
            controls=controls,
        ),
    )


def _nearest(
    vectors: Float[Tensor, "vector d_model"], rows: Float[Tensor, "token d_model"], k: int, chunk: int
) -> tuple[Float[Tensor, "vector k"], Int[Tensor, "vector k"]]:
    """Return the highest cosines and their tokens, with one chunk of tokens in memory beside the best so far."""
    unit = normalize(vectors.to(rows.device).float(), dim=-1)
    best = torch.empty(len(unit), 0, device=unit.device)
    tokens = torch.empty(len(unit), 0, dtype=torch.long, device=unit.device)
    for start in range(0, len(rows), chunk):
        cosines = unit @ normalize(rows[start : start + chunk].float(), dim=-1).T
        ids = torch.arange(start, start + cosines.shape[1], device=unit.device).expand(len(unit), -1)
        best, tokens = torch.cat([best, cosines], dim=-1), torch.cat([tokens, ids], dim=-1)
        best, order = best.topk(min(k, best.shape[1]), dim=-1)
        tokens = tokens.gather(1, order)
    return best.cpu(), tokens.cpu()


def _random(
    vectors: Float[Tensor, "vector d_model"], rows: Float[Tensor, "token d_model"], count: int, seed: int, chunk: int
) -> dict[str, Float[Tensor, "control d_model"]]:
    """Return `count` random vectors of each kind; a length is a vector's own, though no cosine depends on it."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, count, vectors.shape[1], generator=generator)
    lengths = vectors.cpu().norm(dim=-1)[torch.randint(len(vectors), (count,), generator=generator)]
    mean = rows.mean(0, dtype=torch.float32)
    squares = torch.stack([(part.float() - mean).square().sum(0) for part in rows.split(chunk)]).sum(0)
    deviation = (squares / max(len(rows) - 1, 1)).sqrt().cpu()
    return {"norm": normalize(noise[0], dim=-1) * lengths[:, None], "gaussian": mean.cpu() + deviation * noise[1]}
