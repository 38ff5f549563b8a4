"""A transformers model and its processor from a folder or the hub, as they should be loaded, before anything is hooked."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from mmlens.families import Family, UnsupportedModel, family_of
from mmlens.organisms import CHECKPOINTS
from mmlens.processes import launched, local_rank

SOURCE = ("cache_dir", "force_download", "local_files_only", "proxies", "subfolder", "token")
OURS = {
    "attn_implementation": "mmlens sets its own, which is SDPA where nobody looks",
    "config": "change the config.json in a copy of the folder",
    "output_loading_info": "what is missing is warned about",
    "state_dict": "give the transformers model to HookedMLLM(model, processor)",
    "torch_dtype": "say dtype",
    "use_safetensors": "say allow_bin=True for a model that has only .bin files",
    "weights_only": "it is always True: a .bin file may hold tensors only",
    "load_in_4bit": "say quantization_config=BitsAndBytesConfig(load_in_4bit=True)",
    "load_in_8bit": "say quantization_config=BitsAndBytesConfig(load_in_8bit=True)",
}
IGNORED = ("mirror", "low_cpu_mem_usage", "from_tf", "from_flax", "offload_state_dict")
PLACING = ("max_memory", "offload_folder", "offload_buffers")


@dataclass(frozen=True)
class Loaded:
    """A transformers model with its processor, the commit that it came from, and the weights that its files lack."""

    model: Any
    processor: Any
    name: str
    revision: str | None
    missing: tuple[str, ...] = field(default=())


def load(
    name_or_folder: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    allow_bin: bool = False,
    trust_remote_code: bool = False,
    **options: Any,
) -> Loaded:
    """Return the model and processor of `HookedMLLM.from_pretrained`, whose arguments these are, not yet hooked."""
    _check_options(options, device)
    path, local = locate(name_or_folder)
    source: dict[str, Any] = {name: options.pop(name) for name in SOURCE if name in options}
    source |= {"pretrained_model_name_or_path": path, "revision": revision or "main"}
    if local:
        source["local_files_only"] = True
    commit, files = (None, _files_here(path)) if local else _on_hub(path, source)
    source["revision"] = commit or source["revision"]
    family = _family(path, source)
    with _reading(path):
        config = AutoConfig.from_pretrained(**source, trust_remote_code=trust_remote_code)
    family.check(config)
    _check_format(path, files, allow_bin)
    placed = _placement(device, options, getattr(config, "quantization_config", None))
    model_class: Any = family.loads
    try:
        with _reading(path):
            model, report = model_class.from_pretrained(
                **source,
                **options,
                **placed,
                dtype=_dtype(dtype),
                use_safetensors=None if allow_bin else True,
                weights_only=True,
                output_loading_info=True,
            )
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise TypeError(
            f"an option is mmlens' own or one of transformers' from_pretrained, got {', '.join(sorted(options))}: {error}"
        ) from error
    if isinstance(options.get("device_map"), dict):
        _check_map(model, options["device_map"])
    missing = tuple(sorted(report.get("missing_keys", ())))
    if missing:
        warnings.warn(
            f"the files of {name_or_folder} lack {len(missing)} of the model's weights, which are now random: "
            f"{', '.join(missing[:4])}",
            stacklevel=3,
        )
    if "device_map" not in options and "device_map" not in placed:
        model = model.to(device or best_device())
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # bitsandbytes would lay weights out anew
            module.support_avx512bf16_for_cpu = False
    processor = family.load_processor(**source, **({"trust_remote_code": True} if trust_remote_code else {}))
    return Loaded(model, processor, str(name_or_folder), commit, missing)


def best_device() -> str:
    """Return the GPU where there is one, else the CPU; of several processes on a machine, each has a GPU of its own."""
    if not torch.cuda.is_available():
        return "cpu"
    return "cuda" if launched() == 1 else f"cuda:{local_rank() % torch.cuda.device_count()}"


def locate(name: str | Path) -> tuple[str, bool]:
    """Return where a model's files are, and whether that is a folder here rather than a hub id."""
    path = CHECKPOINTS.get(str(name), Path(name).expanduser())
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"a model folder holds a config.json, {path} does not")
        return str(path), True
    if path.is_absolute() or str(name).startswith(".") or len(path.parts) != 2 or not _is_id(str(name)):
        raise FileNotFoundError(
            f"no model folder at {name}, and no hub id: a model is {', '.join(CHECKPOINTS)}, a folder, or an id such as "
            "llava-hf/llava-1.5-7b-hf"
        )
    return str(name), False


def _is_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _check_options(options: dict[str, Any], device: Any) -> None:
    """Raise for options that transformers would take without doing what they say."""
    if device is not None and options.get("device_map") is not None:
        raise ValueError(
            f"device puts the whole model on one device and device_map spreads it: got device={str(device)!r} and "
            f"device_map={options['device_map']!r}; leave one out"
        )
    if launched() > 1 and isinstance(options.get("device_map"), str):
        raise ValueError(
            f"device_map={options['device_map']!r} spreads a model over all devices, and {launched()} processes would each "
            "do so: run one process, give each a dictionary of devices of its own, or leave device_map out: each has a "
            "whole model then"
        )
    for name in options:
        if name in OURS:
            raise TypeError(f"{name} is not for from_pretrained of mmlens: {OURS[name]}")
        if name in IGNORED or name.startswith("_"):
            raise TypeError(f"{name} does nothing in this version of transformers: leave it out")
    if options.get("device_map") is None:
        for name in PLACING:
            if options.get(name) is not None:
                raise ValueError(f"{name} is about a model that is spread: say device_map too, for instance 'auto'")


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | str:
    if dtype is None or dtype == "auto":
        return "auto"
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype is float32, bfloat16, float16 (text or torch's) or 'auto', got {dtype!r}")
    return found


def _placement(device: Any, options: dict[str, Any], quantized: Any) -> dict[str, Any]:
    """Return where a packed model is loaded to: it can't be moved afterwards."""
    if options.get("device_map") is not None or (options.get("quantization_config") is None and quantized is None):
        return {}
    options.pop("device_map", None)
    return {"device_map": {"": str(device or best_device())}}


def _check_map(model: nn.Module, device_map: dict[str, Any]) -> None:
    known = {name for name, _ in model.named_modules()} | {name for name, _ in model.named_parameters()}
    if unknown := sorted(set(device_map) - known):
        raise ValueError(f"device_map names modules of the transformers model, got {', '.join(unknown)}")


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Say in our words that a model's files are not all there, or are there and can't be read."""
    try:
        yield
    except StrictDataclassError as error:
        raise UnsupportedModel(
            f"the config.json of {path} has a setting that transformers does not know: {error}"
        ) from error
    except SafetensorError as error:
        raise ValueError(f"the weights of {path} are damaged ({error}): download or save them again") from error
    except OSError as error:
        said = str(error).partition("\n")[0]
        if "JSON" in said:
            raise ValueError(f"the config.json of {path} is damaged ({said}): download or save it again") from error
        if "no file named" in said:
            raise FileNotFoundError(
                f"a model folder holds its weights as model.safetensors (or parts of it, and their index), {path} does not: "
                f"copy them there, or write them with save_pretrained ({said})"
            ) from error
        raise


def _family(path: str, source: dict[str, Any]) -> Family:
    """Return the family that config.json names, before any class (or code of the repository's own) reads it."""
    asked = {name: value for name, value in source.items() if name != "pretrained_model_name_or_path"}
    with _reading(path):
        told, _ = PreTrainedConfig.get_config_dict(path, **asked)
    if "model_type" not in told:
        raise UnsupportedModel(f"the config.json of a model says its model_type, that of {path} does not")
    return family_of(told["model_type"])


def _files_here(path: str) -> list[str]:
    return [file.name for file in Path(path).iterdir()]


def _on_hub(name: str, source: dict[str, Any]) -> tuple[str | None, list[str]]:
    """Return the commit and the files of a hub id. Where the hub is out of reach only the cache is used from here.

    Raises FileNotFoundError where the cache has not got the model either, at once: transformers would ask for half a minute.
    """
    if not (constants.HF_HUB_OFFLINE or source.get("local_files_only")):
        try:
            found = HfApi(token=source.get("token")).model_info(name, revision=source["revision"], timeout=10)
            return found.sha, [str(file.rfilename) for file in found.siblings or ()]
        except HfHubHTTPError:
            return None, []  # it answered: let transformers say what is wrong (no such model, no permission)
        except Exception:  # the ways in which a network can fail are those of the HTTP library of the day
            pass
    source["local_files_only"] = True
    within = f"{source['subfolder']}/" if source.get("subfolder") else ""
    where = {"cache_dir": source.get("cache_dir"), "revision": source["revision"]}
    config = try_to_load_from_cache(name, f"{within}config.json", **where)
    if not isinstance(config, str):
        raise FileNotFoundError(
            f"{name} is not in the cache, and the hub can't be reached (or HF_HUB_OFFLINE is set): run `hf download {name}` "
            "where there is a network, or give a model's folder"
        )
    folder = Path(config).parents[within.count("/")]
    return folder.name, _files_here(str(folder / within))


def _check_format(path: str, files: list[str], allow_bin: bool) -> None:
    """Raise for a model that has no safetensors, before transformers asks the hub to convert it."""
    safe = any(file.endswith(".safetensors") for file in files)
    if not safe and not allow_bin and any(file.endswith(".bin") for file in files):
        raise UnsupportedModel(
            f"mmlens loads safetensors, {path} has .bin files only: say allow_bin=True (they are read as tensors "
            "only, nothing in them is run), or save the model anew with save_pretrained"
        )
