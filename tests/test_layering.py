"""A file imports only from rooms above its own, and no files import each other in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import mmlens

ROOT = Path(mmlens.__file__).parent
FLOORS = [  # top first; a room is a file or a folder of mmlens, and those of one floor stand in order too
    "results grid media corruption inputs neurons hooks stats metrics".split(),
    "processes attention families liveness resting weights cache organisms loading prompts binding model testing".split(),
    "targets analysis data sweeps evaluation papers doctor verify".split(),
    "plot teaching tour cli".split(),
]
ORDER = [room for floor in FLOORS for room in floor]


def name_of(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in ROOT.rglob("*.py")}


def imports_of(path):
    """Return the mmlens modules that a file imports; `from package import module` counts as the module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports out, `from mmlens.{node.module} import ...`"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else str(node.module) for name in inner}
    return {name for name in found if name.split(".")[0] == "mmlens"}


def room(name):
    return name.split(".")[1] if "." in name else None


def test_every_file_stands_in_a_room_and_imports_only_from_rooms_above():
    for name, path in FILES.items():
        if room(name) is None:
            continue  # mmlens itself shows what the rooms hold
        assert room(name) in ORDER, f"{name} has no room: give it one in FLOORS"
        for other in imports_of(path) - {"mmlens"}:
            upwards = ORDER.index(room(other)) < ORDER.index(room(name))
            assert upwards or room(other) == room(name), f"{name} imports {other}, which is not above it"


def test_no_files_import_each_other_in_a_circle():
    graph = {name: imports_of(path) - {"mmlens", name} for name, path in FILES.items() if name != "mmlens"}
    assert list(TopologicalSorter(graph).static_order())


def test_only_the_model_file_drives_the_bridge():
    drivers = {"build_bridge_from_module", "TransformerBridge", "boot_transformers"}
    users = {name for name, path in FILES.items() if any(word in path.read_text() for word in drivers)}
    assert users == {"mmlens.model"}, users
