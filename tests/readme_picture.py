"""The README's picture: where on a picture the stream reads as a noun already, layer by layer.

python tests/readme_picture.py .github/lens.png
"""

import sys
from pathlib import Path

import torch

from mmlens import HookedMLLM, plot
from mmlens.analysis import logit_lens
from mmlens.organisms import pictoworld
from mmlens.plot.canvas import png


def drawn() -> bytes:
    """Return the logit lens on a held-out scene, of a model that is asked which object is pink, as a PNG file."""
    torch.set_num_threads(1)
    model = HookedMLLM.from_pretrained("pictoworld")
    scene = pictoworld.pairs("held_out", n=1, seed=24)[0].clean
    inputs = model.to_inputs("which object is pink ? answer :", images=scene.image, answer="the")
    lens = logit_lens(model, inputs, top_k=1, targets=[model.to_token("bone")])
    return png(plot.logit_lens(lens, inputs, model, target=0, layers=[0, 3]), dpi=72)


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(drawn())
