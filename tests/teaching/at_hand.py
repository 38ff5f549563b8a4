"""What a reader of a notebook has at hand: some of its variables, made by its own statements and no others."""

import ast
import json
from functools import cache
from pathlib import Path

import mmlens

NOTEBOOKS = Path(mmlens.__file__).parents[1] / "notebooks"


@cache
def cells(number):
    """Return (type, text) of each cell of the notebook with this number."""
    (path,) = NOTEBOOKS.glob(f"{number}_*.ipynb")
    return [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(path.read_text())["cells"]]


def variables(number, *names):
    """Return the notebook's variables: of its statements, only those run that `names` depend on."""
    body = [node for kind, text in cells(number) if kind == "code" for node in ast.parse(text).body]
    wanted, before = set(names), set()
    while wanted != before:
        before = set(wanted)
        wanted |= {name for node in body if stored(node) & before for name in loaded(node)}
    found = {}
    kept = ast.Module([node for node in body if stored(node) & wanted], [])
    exec(compile(kept, f"notebook {number}", "exec"), found)
    return [found[name] for name in names]


def stored(node):
    """Return the names that a statement makes or changes, those of comprehensions and of functions left out."""
    if isinstance(node, ast.FunctionDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name.split(".")[0] for alias in node.names}
    within = {inner for one in ast.walk(node) if isinstance(one, ast.comprehension) for inner in ast.walk(one.target)}
    made = {one.id for one in names_in(node) if isinstance(one.ctx, ast.Store) and one not in within}
    return made | {
        one.value.id for one in ast.walk(node) if isinstance(one, ast.Subscript) and isinstance(one.ctx, ast.Store)
    }


def loaded(node):
    """Return the names that a statement takes from those before it."""
    arguments = {one.arg for one in ast.walk(node) if isinstance(one, ast.arg)}
    changed = {
        one.target.id for one in ast.walk(node) if isinstance(one, ast.AugAssign) and isinstance(one.target, ast.Name)
    }
    made = (
        {one.id for one in names_in(node) if isinstance(one.ctx, ast.Store)} if not isinstance(node, ast.Assign) else set()
    )
    made |= {inner.id for one in ast.walk(node) if isinstance(one, ast.comprehension) for inner in names_in(one.target)}
    return {one.id for one in names_in(node) if isinstance(one.ctx, ast.Load)} - made - arguments | changed


def names_in(node):
    return [one for one in ast.walk(node) if isinstance(one, ast.Name)]
