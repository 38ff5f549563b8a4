"""Saving and loading any result: one safetensors file, whose header holds the rest as JSON, and where it came from."""

import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

FORMAT = "mmlens-1"
PACKAGES = ("mmlens", "torch", "transformers", "transformer-lens", "numpy")
S = TypeVar("S", bound="Storable")


@runtime_checkable
class HasIdentity(Protocol):
    """A model that can say which one it is: its name, its revision and a hash of its weights."""

    def identity(self) -> dict[str, str | None]:
        """Return `model`, `revision` and `weights`."""
        ...


class Storable:
    """A frozen dataclass of tensors, numbers, text and other storables that saves to one file and loads from it."""

    _known: ClassVar[dict[str, type["Storable"]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Storable._known[cls.__name__] = cls

    def save(self, path: str | Path) -> Path:
        """Return `path` (ending .safetensors, added where it is missing), to which this was written whole or not at all.

        Raises TypeError for a field that holds something else than tensors, numbers, text and storables.
        """
        path = with_suffix(path)
        tensors: dict[str, Tensor] = {}
        header = {FORMAT: json.dumps(_encode(self, tensors, type(self).__name__))}  # one entry: of more, the order varies
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        try:
            with partial.open("wb") as file:  # by us, so that the file gets the user's own permissions
                file.write(save(tensors, metadata=header))
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls: type[S], path: str | Path, *, model: HasIdentity | None = None) -> S:
        """Return what was saved at `path`; with `model`, warn where it was made with other weights.

        Raises FileNotFoundError, and ValueError for a file that is damaged, not ours, or holds another kind of thing.
        """
        path = with_suffix(path)
        if not path.is_file():
            raise FileNotFoundError(f"no saved result at {path}")
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file ({error}): save the result again") from error
        if FORMAT not in header:
            raise ValueError(
                f"a saved result has {FORMAT!r} in its header, {path} has {sorted(header)}: another program wrote it"
            )
        value = _decode(json.loads(header[FORMAT]), tensors)
        if not isinstance(value, cls):
            raise ValueError(
                f"{path} holds a {type(value).__name__}, not a {cls.__name__}: call {type(value).__name__}.load"
            )
        provenance = getattr(value, "provenance", None)
        if model is not None and isinstance(provenance, Provenance):
            provenance.warn_unless(model)
        return value


@dataclasses.dataclass(frozen=True)
class Provenance(Storable):
    """Which model, inputs, parameters, seed and versions a result was made with."""

    model: str
    revision: str | None
    weights: str
    inputs: tuple[str, ...]
    parameters: dict[str, Any]
    seed: int | None
    versions: dict[str, str]
    created: str

    @classmethod
    def record(
        cls, model: HasIdentity, inputs: tuple[str, ...], *, seed: int | None = None, **parameters: Any
    ) -> "Provenance":
        """Return the provenance of a result being made now. Parameters are kept as numbers, text or their `repr`."""
        identity = model.identity()
        return cls(
            model=str(identity["model"]),
            revision=identity["revision"],
            weights=str(identity["weights"]),
            inputs=inputs,
            parameters={key: _plain(value) for key, value in parameters.items()},
            seed=seed,
            versions=dict(_versions()),
            created=_now().isoformat(timespec="seconds"),
        )

    def warn_unless(self, model: HasIdentity) -> None:
        """Warn where `model` has other weights than the one that this came from."""
        identity = model.identity()
        if identity["weights"] != self.weights:
            warnings.warn(
                f"this result was made with {self.model} (weights {self.weights}); the model beside it is "
                f"{identity['model']} (weights {identity['weights']}): do not mix their numbers",
                stacklevel=3,
            )


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Result(Storable):
    """What an analysis returns: tensors and how they came about. It is shown by the shapes of its tensors."""

    provenance: Provenance

    def __repr__(self) -> str:
        fields = [field.name for field in dataclasses.fields(self) if field.name != "provenance"]
        return f"{type(self).__name__}({', '.join(_shown(name, getattr(self, name)) for name in fields)})"


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """Return a hash (16 hex digits) of all of a model's weights, by name, shape, dtype and every row and column.

    It is computed where the weights lie, in one pass, so that it costs seconds for billions of them. Weights that are not
    in memory (meta) count by name and shape only.
    """
    sha = hashlib.sha256()
    for name in sorted(weights):
        weight = weights[name]  # one at a time: offloaded ones are loaded here
        sha.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
        if weight.device.type == "meta":
            continue
        table = weight.detach().reshape(len(weight) if weight.ndim else 1, -1)
        for axis in (0, 1):  # rows and columns: one number of the whole would not see two entries change places
            sha.update(torch.hash_tensor(table, axis).cpu().numpy().tobytes())
    return sha.hexdigest()[:16]


def _now() -> datetime:
    """Return the time, or what SOURCE_DATE_EPOCH says that it is, for results that are equal byte for byte."""
    said = os.environ.get("SOURCE_DATE_EPOCH")
    return datetime.fromtimestamp(int(said), timezone.utc) if said else datetime.now(timezone.utc)


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    return tuple((package, version(package)) for package in PACKAGES)


def _shown(name: str, value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{name} {list(value.shape)}"
    text = repr(value)
    return f"{name}={text if len(text) < 80 else text[:76] + '...'}"


def with_suffix(path: str | Path) -> Path:
    """Return the path of a saved result: .safetensors is added where it is missing."""
    path = Path(path)
    return path if path.suffix == ".safetensors" else path.with_name(path.name + ".safetensors")


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return repr(value)


def _encode(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """Return `value` as JSON; tensors go to `tensors` under their path."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {"tensor": path}
    if isinstance(value, Storable):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}  # pyright: ignore
        return {
            "is": type(value).__name__,
            "fields": {k: _encode(v, tensors, f"{path}.{k}") for k, v in fields.items()},
        }
    if isinstance(value, tuple):
        return {"tuple": [_encode(item, tensors, f"{path}.{i}") for i, item in enumerate(value)]}
    if isinstance(value, list):
        return [_encode(item, tensors, f"{path}.{i}") for i, item in enumerate(value)]
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"{path}: only dictionaries with text keys can be saved, got keys {list(value)[:3]}")
        return {"dict": {key: _encode(item, tensors, f"{path}.{key}") for key, item in value.items()}}
    raise TypeError(f"{path} is a {type(value).__name__}: only tensors, numbers, text and storables can be saved")


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(_decode(item, tensors) for item in value["tuple"])
    if "dict" in value:
        return {key: _decode(item, tensors) for key, item in value["dict"].items()}
    if value["is"] not in Storable._known:
        raise ValueError(f"this file holds a {value['is']}, which this version of mmlens does not know")
    return Storable._known[value["is"]](**{key: _decode(item, tensors) for key, item in value["fields"].items()})
