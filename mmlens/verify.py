"""Is the hooked model the model? Every claim checked on the very weights: against plain transformers, before wrapping."""

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmlens.analysis import activation_patching
from mmlens.doctor import QUESTION, doctor
from mmlens.families import family_of
from mmlens.hooks import replace
from mmlens.inputs import Inputs
from mmlens.loading import Loaded, load
from mmlens.model import HookedMLLM
from mmlens.results import Provenance, Result
from mmlens.testing.media import ARGUMENTS, given

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
SLOPE_TOLERANCE = 2e-2
LONGER = "which object is there and what is at the left of it ?"
NEW_TOKENS = 6


@dataclass(frozen=True, kw_only=True, repr=False)
class Verification(Result):
    """What was checked: a line each with `check`, `passed` (None: skipped), `error`, `tolerance` and `said`."""

    lines: tuple[dict[str, Any], ...]
    model_type: str
    dtype: str
    device: str
    platform: str

    @property
    def passed(self) -> bool:
        """Whether no check failed; those that were skipped say so in their line."""
        return all(line["passed"] is not False for line in self.lines)

    def json(self) -> str:
        """Return everything as JSON; `sha256` is that of the rest, written with sorted keys and no spaces."""
        body = {
            "passed": self.passed,
            "model": self.provenance.model,
            "revision": self.provenance.revision,
            "weights": self.provenance.weights,
            "inputs": dict(zip(self.provenance.parameters["cases"], self.provenance.inputs, strict=True)),
            "model_type": self.model_type,
            "dtype": self.dtype,
            "device": self.device,
            "platform": self.platform,
            "versions": self.provenance.versions,
            "created": self.provenance.created,
            "lines": list(self.lines),
        }
        return json.dumps({**body, "sha256": digest(body)}, indent=1, sort_keys=True)


def digest(body: dict[str, Any]) -> str:
    """Return the SHA-256 of a verification's JSON without its `sha256`."""
    rest = {name: value for name, value in body.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass
class _Truth:
    """What the plain model said of one case, and what was asked."""

    inputs: Inputs
    logits: Tensor
    tokens: Tensor | None


@dataclass
class _Lines:
    found: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self, check: str, error: float | None, tolerance: float | None, said: str = "", passed: bool | None = None
    ) -> None:
        if passed is None and error is not None and tolerance is not None:
            passed = error <= tolerance  # a NaN is no pass
        number = None if error is None or error != error else error
        self.found.append(dict(check=check, passed=passed, error=number, tolerance=tolerance, said=said))

    def skip(self, check: str, why: str) -> None:
        self.found.append(dict(check=check, passed=None, error=None, tolerance=None, said=f"skipped: {why}"))

    @contextmanager
    def part(self, check: str) -> Any:
        """Let a check that raises be a failed line, and not the end of the others."""
        try:
            yield
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            self.add(check, None, None, f"{type(error).__name__}: {first}", passed=False)


def verify(name_or_folder: str | Path, *, layers: Any = None, progress: bool = False, **options: Any) -> Verification:
    """Return what holds of a model as mmlens loads it; `options` are those of `HookedMLLM.from_pretrained`.

    The plain transformers model is asked first (text, one and two media of each kind, a padded batch), then the same
    object is wrapped, so that its weights are in memory once: logits and greedy generation must be equal, hooks must read
    what raw torch hooks read, every promised hook must be live (the doctor on `layers`), gradients must be slopes, patching
    must say what whole runs say, and shapes must be those that are told. A check that raises is a failed line; what can't
    be checked says why.
    """
    loaded, lines = load(name_or_folder, **options), _Lines()
    lines.add("every weight is in the files", float(len(loaded.missing)), 0.0, ", ".join(loaded.missing[:4]))
    truths = _ask_plain(loaded, lines)
    model = _wrap(loaded)
    if not truths:
        raise ValueError(f"plain transformers runs none of the inputs: {lines.found[-1]['said']}")
    dtype = next(iter(truths.values())).logits.dtype
    tolerance = TOLERANCE.get(dtype, 5e-2)
    for case, truth in truths.items():
        with lines.part(f"logits: {case}"), torch.no_grad():
            real = truth.inputs.mask("all").cpu()
            lines.add(f"logits: {case}", _error(model(truth.inputs).cpu()[real], truth.logits[real]), tolerance)
        if truth.tokens is not None:
            with lines.part(f"generation: {case}"):
                ours = model.generate(truth.inputs, max_new_tokens=NEW_TOKENS).tokens.cpu()
                same = ours.shape == truth.tokens.shape and torch.equal(ours, truth.tokens)
                lines.add(f"generation: {case}", float(not same), 0.0, f"{NEW_TOKENS} greedy tokens")
        with lines.part(f"positions: {case}"):
            _check_positions(lines, case, truth.inputs)
    main = {case: truth.inputs for case, truth in truths.items() if case.startswith("one ")} or {
        "text": truths["text"].inputs
    }
    for case, inputs in main.items():
        with lines.part(f"raw hooks: {case}"):
            _check_reads(lines, model, case, inputs, tolerance)
        for name in (f"blocks.{len(model.widths['language']) // 2}.mlp.hook_post", "projector.hook_out"):
            with lines.part(f"gradient: {name}, {case}"):
                _check_slope(lines, model, name, case, inputs, dtype)
    for kind in model.family.takes:
        with lines.part(f"patching: {kind}"):
            _check_patching(lines, model, kind, tolerance)
    with lines.part("widths"):
        _check_widths(lines, model, next(iter(main.values())))
    with lines.part("liveness"):
        found = doctor(model, list(main.values()), layers=layers, gradients=False, progress=progress)
        said = f"{len(found.names)} points, {found.measured.count('live')} live" + "".join(
            f", {n}" for n in found.failures[:4]
        )
        lines.add("liveness", float(len(found.failures)), 0.0, said)
        matrices = [i for i, n in enumerate(found.names) if n.endswith(("hook_pattern", "hook_attn_scores"))]
        inert = [found.names[i] for i in matrices if found.promised[i] == "live" and found.measured[i] != "live"]
        lines.add(
            "attention edits", float(len(inert)), 0.0, f"{len(matrices)} matrices" + "".join(f", {n}" for n in inert[:4])
        )
    digests = tuple(truth.inputs.digest() for truth in truths.values())
    return Verification(
        lines=tuple(lines.found),
        model_type=model.family.model_type,
        dtype=str(dtype).removeprefix("torch."),
        device=str(model.device),
        platform=platform.platform(),
        provenance=Provenance.record(model, digests, analysis="verify", cases=list(truths)),
    )


# ---------------------------------------------------------------- the plain model


def _ask_plain(loaded: Loaded, lines: _Lines) -> dict[str, _Truth]:
    """Return what the model says before it is wrapped, for text and for one, two and padded media of each kind."""
    read, truths = _reader(loaded), {}
    plain, echoes = loaded.model.eval(), family_of(loaded.model.config.model_type).echoes
    cases: dict[str, Callable[[], Inputs]] = {"text": lambda: read.to_inputs(QUESTION)}
    for kind in read.family.takes:
        argument: Any = ARGUMENTS[kind]
        both = [given(kind, [seed])[argument] for seed in (0, 1)]
        cases[f"one {kind}"] = lambda kind=kind: read.to_inputs(QUESTION, **given(kind, [0]))
        cases[f"two {kind}s in one prompt"] = lambda kind=kind: read.to_inputs(QUESTION, **given(kind, [0, 1]))
        batch: dict[str, Any] = {argument: both}
        cases[f"padded batch of {kind}s"] = lambda batch=batch: read.to_inputs([QUESTION, LONGER], **batch)
    for case, make in cases.items():
        try:
            inputs = make()
        except ValueError as error:
            lines.skip(f"logits: {case}", str(error))
            continue
        tokens, pad = None, read.tokenizer.pad_token_id
        try:
            with torch.no_grad():
                logits = plain(**inputs.kwargs(), use_cache=False).logits.cpu()
                if not case.startswith("two"):
                    told = plain.generate(**inputs.kwargs(), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=pad)
                    tokens = told.cpu() if echoes else torch.cat([inputs.tokens, told], dim=1).cpu()
        except Exception as error:  # no truth to compare with
            lines.skip(f"logits: {case}", f"plain transformers refuses it ({type(error).__name__}: {error})"[:200])
            continue
        truths[case] = _Truth(inputs, logits, tokens)
    return truths


def _wrap(loaded: Loaded) -> HookedMLLM:
    return HookedMLLM(loaded.model, loaded.processor, name=loaded.name, revision=loaded.revision)


def _reader(loaded: Loaded) -> HookedMLLM:
    """Return what makes inputs for a model that is not wrapped yet: nothing else of it can be used."""
    family = family_of(loaded.model.config.model_type)
    family.settle(loaded.processor, loaded.model.config)
    reader = object.__new__(HookedMLLM)
    reader.hf_model, reader.processor, reader.tokenizer = loaded.model, loaded.processor, loaded.processor.tokenizer
    reader.family, reader.name = family, loaded.name
    return reader


# ---------------------------------------------------------------- checks


def _error(ours: Tensor, truth: Tensor) -> float:
    """Return the largest difference over the largest entry of the truth."""
    return ((ours.float() - truth.float()).abs().max() / truth.float().abs().max().clamp(min=1e-30)).item()


def _check_positions(lines: _Lines, case: str, inputs: Inputs) -> None:
    """Every place (grid, tiles, timeline) has as many cells as the stream has positions of its medium."""
    wrong, placed = [], 0
    for row, places in enumerate(inputs.grids):
        for medium, place in enumerate(places):
            if place is not None:
                placed += 1
                count = int((inputs.medium[row] == medium).sum())
                wrong += [f"row {row}, medium {medium}: {len(place)} places, {count} positions"] * (len(place) != count)
    if placed:
        lines.add(f"positions: {case}", float(len(wrong)), 0.0, f"{placed} media" + "".join(f"; {each}" for each in wrong))


@torch.no_grad()
def _check_reads(lines: _Lines, model: HookedMLLM, case: str, inputs: Inputs, tolerance: float) -> None:
    """What hooks read is what raw torch hooks on transformers' own modules see in the same run."""
    seen: dict[str, Tensor] = {}
    owners = {model.points.owner(name) for name in model.points.live}
    inner = {owner: getattr(model.bridge.get_submodule(owner), "original_component", None) for owner in owners}
    shared = Counter(map(id, inner.values()))  # a part without a module of its own is computed in its parent's
    with ExitStack() as stack:
        for name in model.points.live:
            module, side = inner[model.points.owner(name)], model.points.side(name)
            if module is not None and shared[id(module)] == 1 and side in ("hook_in", "hook_out"):
                stack.callback(_watch(module, name, side, seen).remove)
        _, cache = model.run_with_cache(inputs)
    compared = [name for name in seen if name in cache.cache_dict and seen[name].numel() == cache[name].numel()]
    errors = {name: _error(_like(cache[name], seen[name]), seen[name]) for name in compared}
    if not errors:
        raise ValueError("no hook point lies at the input or output of a module of transformers")
    worst = max(errors, key=lambda name: errors[name])
    lines.add(f"raw hooks: {case}", errors[worst], tolerance, f"{len(errors)} points, the worst is {worst}")


def _like(ours: Tensor, seen: Tensor) -> Tensor:
    """Return what a hook read in the shape that the module has it: heads before positions, or in one axis."""
    if ours.ndim == 4 and seen.ndim == 4 and ours.shape != seen.shape:
        return ours.transpose(1, 2).reshape(seen.shape)
    return ours.reshape(seen.shape)


def _watch(module: Any, name: str, side: str, seen: dict[str, Tensor]) -> Any:
    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor) and one.is_floating_point()]
        if tensors:
            seen[name] = tensors[0].detach()

    def after(module: Any, args: tuple[Any, ...], output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor):
            seen[name] = first.detach()

    if side == "hook_in":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


def _check_slope(lines: _Lines, model: HookedMLLM, name: str, case: str, inputs: Inputs, dtype: torch.dtype) -> None:
    """The gradient of the top token's logit is what the logit does when the activation is moved along it."""
    check = f"gradient: {name}, {case}"
    if name not in model.points.live:
        return lines.skip(check, "the model has no such point")
    if dtype not in (torch.float32, torch.float64):
        return lines.skip(check, f"a finite difference needs float32, the model has {dtype}")
    start: list[Tensor] = []

    def begin(activation: Tensor, hook: Any) -> Tensor:
        start[:] = [activation.detach().requires_grad_(True)]
        return start[0]

    with torch.enable_grad():
        logits = model.run_with_hooks(inputs, fwd_hooks=[(name, begin)])[0, -1]
        target = int(logits.argmax())
        slope = torch.autograd.grad(logits[target], start)[0]
    size = slope.norm()
    if not start or size == 0:
        return lines.add(check, None, None, "the gradient is zero", passed=False)

    @torch.no_grad()
    def moved(step: float) -> float:
        edit = (name, lambda activation, hook: activation + step * slope / size)
        return model.run_with_hooks(inputs, fwd_hooks=[edit])[0, -1, target].double().item()

    scale = start[0].detach().norm().item() * 1e-3
    errors = [abs((moved(s) - moved(-s)) / (2 * s) - size.item()) / size.item() for s in (scale, scale * 10, scale * 0.1)]
    return lines.add(check, min(errors), SLOPE_TOLERANCE, "against a central difference")


@torch.no_grad()
def _check_patching(lines: _Lines, model: HookedMLLM, kind: str, tolerance: float) -> None:
    """Patching, which computes a part of a run again, says what whole runs with hooks say."""
    clean, corrupted = (model.to_inputs(QUESTION, **given(kind, [seed])) for seed in (0, 1))
    layer, sites = len(model.widths["language"]) // 2, {kind: clean.mask(kind), "last": clean.last()}
    said = model(corrupted)[:, -1]
    token, found = int(said.argmax()), dict[str, float]()

    def metric(logits: Tensor) -> Tensor:
        return logits[:, -1, token].float()

    for activation in ("resid_pre", "z"):
        name = f"blocks.{layer}.{'attn.' if activation == 'z' else ''}hook_{activation}"
        value = model.run_with_cache(clean, name)[1][name]
        ours = activation_patching(
            model, clean=clean, corrupted=corrupted, metric=metric, activation=activation, sites=sites, layers=[layer]
        ).metric[0]
        edits = [[(name, replace(value, where=where))] for where in sites.values()]
        whole = torch.stack([metric(model.run_with_hooks(corrupted, fwd_hooks=edit)).cpu() for edit in edits])
        found[activation] = ((ours - whole).abs().max() / said.float().abs().max().cpu()).item()
    worst = max(found, key=lambda activation: found[activation])
    lines.add(f"patching: {kind}", found[worst], tolerance, f"{len(found) * len(sites)} patches, the worst is of {worst}")


@torch.no_grad()
def _check_widths(lines: _Lines, model: HookedMLLM, inputs: Inputs) -> None:
    """Widths and d_model are those of the activations, the output weights and the unembedding."""
    _, cache = model.run_with_cache(inputs, ["*.mlp.hook_post", "blocks.*.hook_resid_post"])
    wrong = []
    for layer, width in enumerate(model.widths["language"]):
        shapes = (cache[f"blocks.{layer}.mlp.hook_post"].shape[-1], *model.W_out(layer).shape)
        stream = cache[f"blocks.{layer}.hook_resid_post"].shape
        expected = (len(inputs), inputs.tokens.shape[1], model.cfg.d_model)
        if shapes != (width, width, model.cfg.d_model) or tuple(stream) != expected:
            wrong.append(f"layer {layer}: {shapes}, stream {tuple(stream)}")
    if model.W_U.shape[0] != model.cfg.d_model:
        wrong.append(f"W_U {tuple(model.W_U.shape)}")
    said = "; ".join(wrong) or f"{len(model.widths['language'])} layers, d_model {model.cfg.d_model}"
    lines.add("widths", float(len(wrong)), 0.0, said)
