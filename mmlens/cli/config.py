"""Flags from a YAML file: under the same names, and a flag on the command line wins."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer

from mmlens.cli.stopping import stop


def read_config(context: Any, path: Path | None) -> Path | None:
    """Make what the file says the defaults of the command that is being read, or stop."""
    if path is not None:
        flags = _flags(context)
        found: dict[str, Any] = {}
        for key, value in _read(path).items():
            name = str(key).replace("_", "-")
            if name not in flags:
                near = get_close_matches(name, flags, 1, 0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"they are {', '.join(flags)}"
                stop(f"--config {path} has names of flags, and {str(key)!r} is none: {hint}")
            if value is not None:
                parameter, turned = flags[name]
                found[parameter.name] = _value(parameter, value, turned, f"--config {path}: {key}")
        context.default_map = {**(context.default_map or {}), **found}
    return path


Config = Annotated[
    Path | None,
    typer.Option(help="A YAML file with these names and values; flags win over it.", callback=read_config, is_eager=True),
]


def _flags(context: Any) -> dict[str, tuple[Any, bool]]:
    """Return the parameters that a file may give, by name, and whether the name turns a switch off."""
    found: dict[str, tuple[Any, bool]] = {}
    for parameter in context.command.params:
        if parameter.name not in ("config", "help"):
            found |= {name.lstrip("-").replace("_", "-"): (parameter, False) for name in parameter.opts}
            found |= {name.lstrip("-"): (parameter, True) for name in parameter.secondary_opts}
    return found


def _read(path: Path) -> Mapping[Any, Any]:
    import yaml

    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        stop(f"--config is a YAML file, {path} can't be read ({error.strerror}): name another")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        stop(f"--config is a YAML file, {path}{where} is not ({getattr(error, 'problem', None) or 'not UTF-8 text'})")
    if not isinstance(found, Mapping):
        stop(f"--config is a YAML file of names and values, {path} has none: write lines such as 'n: 100'")
    return found


def _value(parameter: Any, value: Any, turned: bool, where: str) -> Any:
    """Return a value as the command line would give it: text, several texts, or on and off."""
    is_switch = bool(getattr(parameter, "is_flag", False))
    if isinstance(value, bool) != is_switch:
        stop(f"{where} is {'true or false' if is_switch else 'a value, or left out'}, got {value!r}")
    if is_switch:
        return value != turned
    if isinstance(value, Mapping):
        value = [f"{name}={one}" for name, one in value.items()]
    several = [str(one) for one in value] if isinstance(value, list) else [str(value)]
    return several if parameter.nargs == -1 or getattr(parameter, "multiple", False) else ",".join(several)
