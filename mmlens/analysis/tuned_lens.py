"""A lens that is fitted: what each layer's stream says once it is put into the final layer's terms."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from mmlens.analysis.logit_lens import Lens, stream_points
from mmlens.hooks import feed
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.results import Provenance, Result


@dataclass(frozen=True, kw_only=True, repr=False)
class TunedLens(Result):
    """A translator for each row of the logit lens: the stream h is read as h + h W + b. The last row's changes nothing.

    `loss` is, step by step, the mean KL divergence (nats) of each row's reading from the model's own output.
    """

    weight: Float[Tensor, "layer d_model d_model"]
    bias: Float[Tensor, "layer d_model"]
    loss: Float[Tensor, "step layer"]

    def lens(self, model: HookedMLLM) -> Lens:
        """Return what `logit_lens(..., lens=...)` takes, reading through this model's final norm and unembedding."""

        def read(row: int, resid: Tensor) -> Tensor:
            if row == len(self.weight):
                return model.unembed(resid)
            weight, bias = self.weight[row].to(resid), self.bias[row].to(resid)
            return model.unembed(resid + resid @ weight + bias)

        return read


def fit_tuned_lens(
    model: HookedMLLM,
    batches: Sequence[Inputs],
    *,
    where: Sequence[str] = ("all",),
    steps: int = 250,
    lr: float = 1e-3,
    positions: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> TunedLens:
    """Return the lens that best predicts the model's own output, in `steps` steps of Adam over `batches`, one at a time.

    Each step is about `positions` positions of one batch, drawn by `seed` among the groups `where`; the model does not
    change. Logits of one layer are in memory at a time. With steps=0 it is the logit lens. Raises ValueError without
    batches, and for one without such positions. Source: Belrose et al. 2023, whose translators are these.
    """
    if not batches:
        raise ValueError("a lens is fitted on inputs, got none: give a list of model.to_inputs(...)")
    generator = torch.Generator().manual_seed(seed)
    depth, width = model.cfg.n_layers, model.cfg.d_model
    weight = nn.Parameter(torch.zeros(depth, width, width, device=model.device))
    bias = nn.Parameter(torch.zeros(depth, width, device=model.device))
    fitted = torch.optim.Adam([weight, bias], lr=lr)
    decay = torch.optim.lr_scheduler.LinearLR(fitted, 1.0, 0.0, total_iters=max(steps, 1))
    losses = torch.zeros(steps, depth)
    for step in tqdm(range(steps), "tuning", disable=not progress):
        streams = _streams(model, batches[step % len(batches)], where, positions, generator)
        with torch.no_grad():
            truth = torch.log_softmax(model.unembed(streams[-1]).float(), dim=-1)
        fitted.zero_grad()
        with torch.enable_grad():
            for layer, stream in enumerate(streams[:-1]):
                guess = model.unembed(stream + (stream.float() @ weight[layer] + bias[layer]).to(stream.dtype))
                loss = (truth.exp() * (truth - torch.log_softmax(guess.float(), dim=-1))).sum(-1).mean()
                loss.backward(inputs=[weight, bias])
                losses[step, layer] = loss.detach()
        fitted.step()
        decay.step()
    return TunedLens(
        weight=weight.detach().cpu(),
        bias=bias.detach().cpu(),
        loss=losses,
        provenance=Provenance.record(
            model,
            tuple(inputs.digest() for inputs in batches),
            seed=seed,
            analysis="fit_tuned_lens",
            where=list(where),
            steps=steps,
            lr=lr,
            positions=positions,
        ),
    )


@torch.no_grad()
def _streams(
    model: HookedMLLM, inputs: Inputs, where: Sequence[str], positions: int, generator: torch.Generator
) -> list[Float[Tensor, "position d_model"]]:
    """Return the stream before every block and behind the last, at positions that are drawn."""
    chosen = inputs.mask(*where).nonzero()
    if not len(chosen):
        raise ValueError(f"a lens is fitted at positions of {', '.join(where)}, and {inputs} has none: choose other groups")
    chosen = chosen[torch.randperm(len(chosen), generator=generator)[:positions].to(chosen.device)]
    found: list[Tensor] = []

    def read(resid: Tensor, hook: Any) -> None:
        found.append(resid[chosen[:, 0].to(resid.device), chosen[:, 1].to(resid.device)].clone())

    model.next_logits(inputs, fwd_hooks=[(name, feed(read)) for name in stream_points(model)])
    return found
