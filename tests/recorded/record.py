"""Record what transformers' real processor makes of the cases in NAME.json, as NAME.safetensors.

    python -m venv throwaway && throwaway/bin/pip install torch torchvision transformers==5.23.0 pillow safetensors
    python -c "from mmlens.testing import tiny; tiny('NAME', 'folder')"          # where mmlens is installed
    cd tests && ../throwaway/bin/python -m recorded.record NAME ../folder

The versions that were used are in the file's header.
"""

import sys
from importlib.metadata import version

from safetensors.torch import save_file
from transformers import AutoProcessor

from recorded import HERE, cases


def record(name, folder):
    """Write NAME.safetensors beside this file."""
    processor = AutoProcessor.from_pretrained(folder)
    tensors = {}
    for case, text, images, videos, fps in cases(name):
        options = {}
        if images:
            options["images"] = [images]  # those of one text
        if videos:
            options |= dict(
                videos=videos,
                do_sample_frames=False,
                video_metadata=[
                    dict(total_num_frames=len(video), fps=fps, frames_indices=list(range(len(video)))) for video in videos
                ],
            )
        made = processor(text=[text], return_tensors="pt", **options)
        tensors |= {f"{case}/{part}": tensor.contiguous() for part, tensor in made.items() if hasattr(tensor, "contiguous")}
    packages = ("torch", "torchvision", "transformers", "pillow")
    save_file(tensors, HERE / f"{name}.safetensors", metadata={package: version(package) for package in packages})


if __name__ == "__main__":
    record(*sys.argv[1:])
