"""Models, as commands load them."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmlens.cli.stopping import first_line, quiet, stop

if TYPE_CHECKING:
    from mmlens.model import HookedMLLM

SMALL = 30_000_000  # weights: below this, threads only wait for each other

Model = Annotated[str, typer.Argument(help="pictoworld, pictoworld-frozen, a model folder, or a hub id.")]
Device = Annotated[str | None, typer.Option(help="Where it computes: cpu, cuda:0, ... (default: the GPU, if there is one).")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16 (default: as stored).")]
DeviceMap = Annotated[str | None, typer.Option(help="auto: spread over the devices there are. Not with --device.")]


def load(name: str, **options: Any) -> "HookedMLLM":
    """Return the model, or stop with the first line of what went wrong, whatever library said it."""
    quiet()
    import torch

    from mmlens.model import HookedMLLM

    try:
        model = HookedMLLM.from_pretrained(name, **{key: value for key, value in options.items() if value is not None})
    except Exception as error:  # a model folder can be wrong in as many ways as there are libraries that read it
        stop(f"cannot load the model {name!r}: {first_line(error)}")
    if sum(weight.numel() for weight in model.hf_model.parameters()) < SMALL:
        torch.set_num_threads(1)
    return model
