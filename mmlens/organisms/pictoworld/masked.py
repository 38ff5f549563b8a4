"""An attempt at a tower without labels: `python -m mmlens.organisms.pictoworld.masked [--out DIR] ...`, options as train's.

The vision tower learns to fill in patches that it does not see (half of every image, as in SimMIM, Xie et al. 2022); no
class, colour or word is shown to it. The other stages are those of `train`. What came of it is in the model card.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import nn

from mmlens.organisms.pictoworld import world
from mmlens.organisms.pictoworld.batches import pixels_of
from mmlens.organisms.pictoworld.train import PICTOWORLD
from mmlens.organisms.training import Descent, Run, Stage, main, muon_and_adamw

_HIDDEN = 0.5


def train_masked(model, run: Run) -> Descent:
    """Trains the vision stage without labels: squared error of the hidden patches' pixels."""
    tower = model.model.vision_tower
    width = model.config.vision_config.hidden_size
    mask, painter = _Mask(width), nn.Linear(width, 3 * world.PATCH**2)

    def loss(step):
        drawn = [world.layout_at("train", run.seed + step, index)[0] for index in range(run.batch)]
        pixels = pixels_of([world.render(layout) for layout in drawn])
        truth = patches(pixels)
        hidden = torch.rand(truth.shape[:2], generator=torch.Generator().manual_seed(run.seed + step)) < _HIDDEN
        embedding = tower.embeddings.patch_embedding
        handle = embedding.register_forward_hook(lambda module, given, embedded: mask(embedded, hidden))
        try:
            features = tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
        finally:
            handle.remove()
        return (painter(features).float() - truth)[hidden].square().mean()

    return run.descend(loss, muon_and_adamw(nn.ModuleList([tower, mask, painter]), 0.02, 3e-3))


def patches(pixels: Float[torch.Tensor, "batch 3 64 64"]) -> Float[torch.Tensor, "batch patch pixel"]:
    """The pixels of every patch, in the order of the tower's positions."""
    return nn.functional.unfold(pixels, world.PATCH, stride=world.PATCH).transpose(1, 2)


class _Mask(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(width))

    def forward(self, embedded, hidden):
        """The embedded patches [batch, width, rows, columns], the hidden ones replaced by one learnt vector."""
        where = hidden.view(len(hidden), 1, *embedded.shape[2:])
        return torch.where(where, self.token.to(embedded.dtype)[None, :, None, None], embedded)


def _instead_of_labels(name: str, stage: Stage) -> tuple[str, Stage]:
    if name == "vision":
        return "masked", replace(stage, train=train_masked)
    return name, replace(stage, finishes=stage.finishes and stage.finishes.replace("pictoworld", "pictoworld-masked"))


MASKED = replace(PICTOWORLD, stages=dict(_instead_of_labels(*item) for item in PICTOWORLD.stages.items()))

if __name__ == "__main__":
    main(MASKED, description=__doc__, out=Path("runs/pictoworld-masked"))
