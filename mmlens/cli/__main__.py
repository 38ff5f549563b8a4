"""`python -m mmlens.cli` is `mmlens`."""

from mmlens.cli import app

app(prog_name="mmlens")
