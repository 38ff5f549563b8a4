"""The `mmlens` command. Nothing heavy is imported before a command runs, so that help is there at once."""

from mmlens.cli import evaluating, looking, selecting, statistics  # noqa: F401 (each adds its commands)
from mmlens.cli.application import app

__all__ = ["app"]
