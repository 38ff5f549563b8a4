"""Where hook points lie in transformers' own models, family by family: (submodule, whether its input or its output).

A family's file has `SITES`, hook names and submodules with `{l}` for the layer, and `ATTENTION`, the attention module of
each tower and of the language model (of `blocks.{l}`; a second one in a block has its own name behind it); `of(config)`
returns both where they depend on it. It may have `ECHOES` (False where `generate` returns new tokens only), `POST_NORM`
(the prefixes of towers whose stream is normalised after each sum), `TEXT` (the part that reads a text without media, where
the whole model can't), and, where positions see later ones, `ahead(inputs, row)`, which says which, [query][key]; where a
model has attention of its own, `route(reference, attention)` lets it call `attention`. Nothing here imports mmlens.
"""

from importlib import import_module
from pkgutil import iter_modules


def under(hooks, path, table):
    """Return `table` (point -> submodule of a block, side) for the blocks that lie under `path`."""
    return {f"{hooks}.{point}": (f"{path}.{inner}".rstrip("."), *side) for point, (inner, *side) in table.items()}


def chunk(path, index, count):
    """Return the site that is one of `count` equal parts, along the last axis, of what a submodule returns."""
    return path, "out", ("chunk", index, count)


def call(path, index, count):
    """Return the site that is what a submodule returns the `index`-th of the `count` times that a run calls it."""
    return path, "out", ("call", index, count)


def load():
    """Return every family's file by its model type."""
    files = [import_module(f"sites.{info.name}") for info in iter_modules(__path__) if not info.name.startswith("_")]
    return {file.MODEL_TYPE: file for file in files if hasattr(file, "MODEL_TYPE")}
