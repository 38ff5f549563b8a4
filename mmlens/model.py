"""A multimodal model whose every activation can be read and edited. The only file that drives TransformerBridge."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge.sources import build_bridge_from_module

from mmlens import attention, binding
from mmlens.cache import ActivationCache
from mmlens.families import family_of, prefix
from mmlens.families.parts import activation_beside
from mmlens.families.plain import plain
from mmlens.hooks import Hook, counted_runs, feed, module_of, neuron_hook
from mmlens.inputs import Inputs, Row
from mmlens.liveness import HookPoints, InertHook, NamesFilter, Watch, guard
from mmlens.loading import best_device, load
from mmlens.prompts import check_length, instead, rows_of
from mmlens.resting import Rest
from mmlens.results import hash_weights
from mmlens.weights import Stored, device_of, is_offloaded, is_packed, output_rows, units, versions, weight_of


@dataclass(frozen=True, repr=False)
class Generation:
    """What a model wrote: `tokens` [batch, prompt + new], and the new `text` of each row."""

    tokens: Int[Tensor, "batch pos"]
    text: list[str]

    def __repr__(self) -> str:
        return f"Generation({', '.join(map(repr, self.text))})"


class HookedMLLM:
    """A multimodal language model with hooks, made from a transformers model and its processor.

    Hook names are TransformerLens' own in the language model, and `vision.blocks.{layer}.*`, `projector.hook_in/out`
    elsewhere; `hook_names` lists them. TransformerLens' bridge is `bridge`, the transformers model `hf_model`.
    """

    def __init__(self, hf_model: nn.Module, processor: Any, *, name: str = "unnamed", revision: str | None = None) -> None:
        config: Any = hf_model.config
        family = family_of(config.model_type)
        family.check(config)
        family.settle(processor, config)
        family.prepare(hf_model)
        ArchitectureAdapterFactory.register_adapter(family.architecture, family.adapter(config))
        self.hf_model: Any = hf_model.eval()
        self.processor = processor
        self.tokenizer = processor.tokenizer
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # aliases of optional parts that this model lacks
            self.bridge = build_bridge_from_module(hf_model, family.architecture, hf_config=config, model_name=name)
        # Given a tokenizer, the builder would load it anew by its name (from the network) and set tokens on it.
        self.bridge.tokenizer, self.bridge.processor = self.tokenizer, processor
        self.bridge.cfg.device = str(self.device)  # the builder takes where the first weight lies, "meta" if offloaded
        ids = self.tokenizer.encode("a")
        self.bridge.cfg.tokenizer_prepends_bos = ids[0] == self.tokenizer.bos_token_id
        self.bridge.cfg.tokenizer_appends_eos = ids[-1] == self.tokenizer.eos_token_id
        self.name, self.revision, self.family = name, revision, family
        attention.attach_all(self.bridge)
        self.points = HookPoints(self.bridge, family, config)
        self._rest = Rest(self.bridge, self.hf_model)
        self._watchers: list[Watch] = []
        self._hashed: tuple[Any, str] = ((), "")
        self.hf_model.set_attn_implementation(attention.NAME)

    def __repr__(self) -> str:
        neurons = ", ".join(f"{sum(widths):,} {module}" for module, widths in self.widths.items())
        return f"HookedMLLM({self.name}: {self.family.model_type}, {self.cfg.n_layers} layers, neurons: {neurons})"

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        revision: str | None = None,
        allow_bin: bool = False,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> "HookedMLLM":
        """Return the model "pictoworld", "pictoworld-frozen", in a local folder, or of a hub id, ready to be hooked.

        A local folder needs no network. `device` is the GPU where there is one, `dtype` (torch's or its name) what the
        weights are stored in. `options` are those of transformers' from_pretrained: `device_map` ("auto" or a dict) with
        `max_memory` and `offload_folder` spreads the model, `quantization_config` packs it. Only safetensors are read
        unless `allow_bin`; then .bin files too, as tensors only. `trust_remote_code` lets the repository's own code read
        its configuration and processor; the model is always transformers' own class.

        Raises FileNotFoundError for a folder that is no model and for a hub id out of reach, UnsupportedModel for an
        architecture we do not know, ValueError and TypeError for options that contradict each other or do nothing.
        """
        loaded = load(
            name_or_folder,
            device=device,
            dtype=dtype,
            revision=revision,
            allow_bin=allow_bin,
            trust_remote_code=trust_remote_code,
            **options,
        )
        return cls(loaded.model, loaded.processor, name=loaded.name, revision=loaded.revision)

    @classmethod
    def from_parts(
        cls,
        language_model: nn.Module | str | Path,
        vision_tower: nn.Module | str | Path,
        projector: nn.Linear | Tensor | tuple[Tensor, Tensor | None],
        *,
        tokenizer: Any,
        image_processor: Any,
        name: str = "unnamed",
        device: torch.device | str | None = None,
        **options: Any,
    ) -> "HookedMLLM":
        """Return a text-only language model that is shown pictures: a prefix model of these parts, ready to be hooked.

        Parts are loaded transformers modules (they become part of the model, not copied) or names and folders of them;
        `projector` is the linear map between them, or its weight, or (weight, bias). `options` are `feature_layer` (None:
        the tower's own output), `drop_cls`, `image_token` and `dtype`; see `families.prefix.assemble`. Raises ValueError for
        a projector of another shape, UnsupportedModel for a part that mmlens does not know.
        """
        parts: dict[str, Any] = dict(tokenizer=tokenizer, image_processor=image_processor, **options)
        hf_model: Any
        hf_model, processor = prefix.assemble(language_model, vision_tower, projector, **parts)
        return cls(hf_model.to(device or best_device()), processor, name=name)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model and its processor, as transformers does: with its names, and loaded by it or by `from_pretrained`.

        Edits of weights are in it, hooks are not. Raises ValueError for a model that is offloaded or quantised.
        """
        if is_offloaded(self.hf_model) or is_packed(self.hf_model):
            raise ValueError(f"a model is saved from plain weights in memory, {self.name} has packed or offloaded ones")
        plain(self.hf_model, self.family.loads).save_pretrained(folder)
        self.processor.save_pretrained(folder)

    # ---------------------------------------------------------------- inputs

    def to_inputs(
        self,
        text: str | Sequence[str],
        *,
        images: Any = None,
        audio: Any = None,
        videos: Any = None,
        chat: bool = False,
        answer: str | Sequence[str] = "",
    ) -> Inputs:
        """Return text and media as the model reads them, left-padded where there are several rows.

        `images`: one image (PIL, array or file), a list for a single text, or one entry (image, list or None) per text;
        `videos` (lists of frames, arrays, (frames, fps), or files) and `audio` (samples, (samples, rate), or files) alike.
        `chat=True` wraps each text as one user turn in the processor's chat template. `answer` is put behind the prompt,
        tokenized on its own, as generation would continue it. A placeholder missing from the text is inserted where the
        family's convention has it. Raises ValueError where texts, media and placeholders do not match, and for a kind of
        media that the model does not take.
        """
        media: dict[str, Any] = dict(images=images, videos=videos, audio=audio)
        return self._batch(rows_of(self.family, self.processor, text, **media, chat=chat, answer=answer))

    def with_images(self, inputs: Inputs, images: Any) -> Inputs:
        """Return the same prompts and answers with other pictures, position by position in line with `inputs`.

        `images` is as in `to_inputs`, with None for a row that keeps its own. Raises ValueError where the tokens would not
        be the same: another number of pictures, or, in models whose number of positions depends on it, another size.
        """
        return self._batch(instead(self.family, self.processor, inputs, images=images))

    def with_audio(self, inputs: Inputs, audio: Any) -> Inputs:
        """Return the same prompts and answers with other sounds, in line with `inputs`: see `with_images`."""
        return self._batch(instead(self.family, self.processor, inputs, audio=audio))

    def _batch(self, rows: Sequence[Row]) -> Inputs:
        pad = self.tokenizer.pad_token_id
        inputs = Inputs.from_rows(rows, pad=self.tokenizer.eos_token_id or 0 if pad is None else pad)
        check_length(inputs, self.hf_model.config)
        return inputs.to(self.device)

    # ---------------------------------------------------------------- running

    def __call__(self, inputs: Inputs) -> Float[Tensor, "batch pos d_vocab"]:
        """Return the logits of every position."""
        self._note_run(inputs)
        with self.points.whole_edits(), self._rest.while_idle():
            return self.hf_model(**self._fed(inputs), **self._positions(inputs.attention_mask), use_cache=False).logits

    def run_with_cache(
        self, inputs: Inputs, names_filter: NamesFilter = None, *, fwd_hooks: Sequence[Hook] = ()
    ) -> tuple[Float[Tensor, "batch pos d_vocab"], ActivationCache]:
        """Return the logits, and the activations whose names match: exact names, globs, or a predicate of our names.

        None is every point that fires except attention patterns and scores, which would turn SDPA off, and patterns' means
        and rows: name those (`"*.hook_pattern"`). Activations are detached, and seen after `fwd_hooks`. Raises UnknownHook
        for a name that matches nothing.
        """
        cached: dict[str, Tensor] = {}
        hooks = [(name, feed(_keep(cached, name))) for name in self.points.choose(names_filter)]
        must_fire = names_filter is not None and not callable(names_filter)
        with self.hooks(fwd_hooks=fwd_hooks), self.hooks(fwd_hooks=hooks, must_fire=must_fire):
            logits = self(inputs)
        return logits, ActivationCache(cached, self.bridge, inputs, self.points.canonical)

    def run_with_hooks(
        self, inputs: Inputs, *, fwd_hooks: Sequence[Hook] = (), bwd_hooks: Sequence[Hook] = ()
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Return the logits of a run with these hooks, which are gone afterwards, also when it raises.

        `bwd_hooks` still fire when `backward` is called on what is returned.
        """
        with self.hooks(fwd_hooks=fwd_hooks, bwd_hooks=bwd_hooks):
            return self(inputs)

    def next_logits(self, inputs: Inputs, *, fwd_hooks: Sequence[Hook] = ()) -> Float[Tensor, "batch d_vocab"]:
        """Return the logits of each row's last position, from a run with these hooks that unembeds no other.

        They are `run_with_hooks(...)[:, -1]`, but for rounding. A hook behind the unembedding sees that position only.
        """

        def last(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return args[0][:, -1:], *args[1:]

        handle = self.bridge.unembed.original_component.register_forward_pre_hook(last)
        try:
            return self.run_with_hooks(inputs, fwd_hooks=fwd_hooks)[:, -1]
        finally:
            handle.remove()

    def generate(
        self, inputs: Inputs, *, max_new_tokens: int = 16, fwd_hooks: Sequence[Hook] = (), **options: Any
    ) -> Generation:
        """Return what the model writes after the prompt: greedy unless `options` (transformers' own) say otherwise.

        Hooks act at prefill (the whole prompt) and at each step (one position); a `where` mask acts at prefill only.
        """
        if max_new_tokens < 1:
            raise ValueError(f"a model writes at least one token, got max_new_tokens = {max_new_tokens}: give 1 or more")
        options = {"do_sample": False, "pad_token_id": self.tokenizer.pad_token_id, **options}
        with (
            self.hooks(fwd_hooks=fwd_hooks),
            self.points.whole_edits(),
            counted_runs(self.bridge.blocks[0]),
            self._rest.while_idle(),
            torch.no_grad(),
        ):
            self._note_run(inputs)
            tokens = self.hf_model.generate(**self._fed(inputs), max_new_tokens=max_new_tokens, **options)
        if not self.family.echoes:
            prompts = inputs.tokens.repeat_interleave(len(tokens) // len(inputs), dim=0)
            tokens = torch.cat([prompts, tokens], dim=1)
        new = tokens[:, inputs.tokens.shape[1] :]
        return Generation(tokens, [text.strip() for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)])

    @contextmanager
    def hooks(
        self, *, fwd_hooks: Sequence[Hook] = (), bwd_hooks: Sequence[Hook] = (), must_fire: bool = True
    ) -> Iterator["HookedMLLM"]:
        """Put hooks on for the length of a `with`; names may be globs (`"blocks.*.hook_resid_post"`).

        Raises UnknownHook for a name that matches nothing, and InertHook for one on a point that never fires, for an
        edit where the model would not see it, and, at the end, for a forward hook that no run reached (`must_fire`).
        An edit at `hook_resid_mid` reaches the MLP and the skip path.
        """
        with ExitStack() as stack:
            watch = Watch()
            self._watchers.append(watch)
            stack.callback(self._watchers.remove, watch)
            for pattern, fn in fwd_hooks:
                for name in self.points.resolve(pattern):
                    self.points.put(stack, name, watch.track(name, guard(fn, name, self.points.read_only)))
            for pattern, fn in bwd_hooks:
                for name in self.points.resolve(pattern):
                    if self.points.is_half(name):
                        raise InertHook(
                            f"a gradient at {name} would miss the skip path; the gradient at "
                            f"{name.replace('resid_mid', 'attn_out')} is the whole one"
                        )
                    if name.endswith(attention.BESIDE):
                        raise InertHook(
                            f"no gradient passes {name}, which is computed beside the model: take hook_pattern's"
                        )
                    self.points.put(stack, name, fn, "bwd")
            yield self
            if must_fire:
                watch.check()

    @contextmanager
    def bind(self, *inputs: Inputs) -> Iterator[Any]:
        """Yield the bridge for TransformerLens' own tools, with the media of `inputs` bound to their tokens.

        A tool calls the bridge with tokens; the bound inputs with those tokens are what runs. Works under it:
        `transformer_lens.patching.get_act_patch_*` (resid, attn_out, mlp_out, heads, patterns), `logit_lens`,
        `run_with_cache`, `run_with_hooks`, and node attribution patching between inputs of one row each (its "embed" nodes
        are 0 at image positions: TransformerLens takes them before images are merged in). Refused by TransformerLens on
        native attention: edge attribution, direct path patching, `hook_result`, split q/k/v inputs; and
        `direct_logit_attribution`, instead of which the cache of `run_with_cache` has `logit_attrs`. `generate` and text
        are not for a bound bridge. Raises ValueError for two inputs with the same tokens and different media (bind one at
        a time: run the clean one with `model.run_with_cache` before, and bind the corrupted one), and, inside, for tokens
        that were not bound.
        """
        with binding.bound(self.bridge, self.hf_model, inputs, self._fed, self.points) as bridge:
            yield bridge

    # ---------------------------------------------------------------- names and weights

    @property
    def hook_names(self) -> list[str]:
        """The name of every hook point that fires, one per point, in the order of the model."""
        return list(self.points.live)

    @property
    def device(self) -> torch.device:
        """Where the language model's embedding computes, and so where inputs go."""
        return device_of(self.hf_model.get_input_embeddings())

    @property
    def cfg(self) -> Any:
        """TransformerLens' configuration of the language model: n_layers, d_model, n_heads, d_head, d_vocab, ..."""
        return self.bridge.cfg

    @cached_property
    def widths(self) -> dict[str, tuple[int, ...]]:
        """How many neurons each layer of each module has, the language model's first."""
        posts = [name for name in self.points.by_name if name.endswith(".hook_post")]
        modules = dict.fromkeys(map(module_of, posts))
        widths: dict[str, tuple[int, ...]] = {}
        for module in sorted(modules, key=lambda one: one != "language"):
            layers = sum(module_of(name) == module for name in posts)
            widths[module] = tuple(units(self._output(layer, module)) for layer in range(layers))
        return widths

    @property
    def live_layers(self) -> dict[str, int]:
        """How many layers of each module, from the first, reach the output: of some towers the last is not read."""
        return {
            module: sum(self.points.promise(neuron_hook(module, layer, "post")) == "live" for layer in range(len(widths)))
            for module, widths in self.widths.items()
        }

    def W_out(self, layer: int, module: str = "language") -> Float[Tensor, "unit d_out"]:
        """Return the output weights of a layer's neurons, a row each: the model's own where they lie in memory, unpacked.

        Offloaded or quantised ones are a copy. Raises KeyError where there are no neurons, and UnreadableWeight for a kind
        of quantisation that mmlens does not read; so do W_U and W_E.
        """
        return output_rows(self._output(layer, module))

    def act(self, layer: int, module: str = "language") -> Callable[[Tensor], Tensor]:
        """Return the nonlinearity of a layer's neurons: of what `hook_pre` holds it makes the site `gate_act`.

        That is what `hook_post` holds, or, where `is_gated`, its factor beside `hook_pre_linear`. Raises KeyError where
        there are no neurons.
        """
        return activation_beside(self.hf_model, self._linear(layer, module, "pre"))

    def is_gated(self, layer: int, module: str = "language") -> bool:
        """Return whether a layer's neurons have a `hook_pre_linear`. Raises KeyError where there are no neurons."""
        self._linear(layer, module, "post")
        return neuron_hook(module, layer, "pre_linear") in self.points.by_name

    def _output(self, layer: int, module: str) -> Any:
        """Return the linear map that a layer's neurons write through."""
        return self._linear(layer, module, "post").original_component

    def _linear(self, layer: int, module: str, site: Literal["pre", "post"]) -> Any:
        """Return the component around the linear map that a layer's neurons are read from, or write through."""
        name = neuron_hook(module, layer, site)
        if name not in self.points.by_name or (module == "projector" and layer):
            raise KeyError(f"{self.name} has no neurons in layer {layer} of {module!r}")
        return self.bridge.get_submodule(self.points.owner(name))

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """The unembedding, as a view of the model's own weights (a copy where they are offloaded or quantised)."""
        return output_rows(self.hf_model.get_output_embeddings())

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:
        """What is in every position's logits whatever the stream holds: the unembedding's bias, and the final norm's
        through W_U. Attributions of the stream's components add up to the logits less this."""
        norm, head = self.bridge.ln_final.original_component, self.bridge.unembed.original_component
        unembedding = self.W_U
        bias = unembedding.new_zeros(unembedding.shape[1]) if head.bias is None else weight_of(head, "bias")
        return bias if getattr(norm, "bias", None) is None else weight_of(norm, "bias") @ unembedding + bias

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """The token embedding, the model's own weights (a copy where they are offloaded or quantised)."""
        return weight_of(self.hf_model.get_input_embeddings())

    def unembed(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_vocab"]:
        """Return what the model would predict from `resid`: final norm, unembedding and, where there is one, soft cap.

        No hook fires.
        """
        head = self.bridge.unembed.original_component
        logits = head(self.bridge.ln_final.original_component(resid))
        cap = getattr(self.cfg, "output_logits_soft_cap", 0.0) or 0.0
        return torch.tanh(logits / cap) * cap if cap > 0 else logits

    def to_token(self, word: str) -> int:
        """Return the first token of `word`: with its leading space, where the tokenizer tells " car" from "car".

        Raises ValueError for an empty or unknown word.
        """
        ids = self.tokenizer(word, add_special_tokens=False)["input_ids"]
        if not ids or ids[0] == self.tokenizer.unk_token_id:
            raise ValueError(f"{word!r} has no token in this model's vocabulary")
        return ids[0]

    def to_str_tokens(self, tokens: Int[Tensor, " pos"]) -> list[str]:
        """Return each token as text; a leading space of the tokenizer's own spelling is shown as a space.

        Where a vocabulary has been made larger than its tokenizer, ids without a token are shown as `<32001>`.
        """
        ids = tokens.tolist()
        pieces = zip(self.tokenizer.convert_ids_to_tokens(ids), ids, strict=True)
        return [f"<{id}>" if piece is None else piece.replace("\u2581", " ").replace("\u0120", " ") for piece, id in pieces]

    def identity(self) -> dict[str, str | None]:
        """Return the model's name, revision and a hash of its weights (all of them, so that an edit shows)."""
        edits = versions(self.hf_model)
        if self._hashed[0] != edits:  # torch counts a tensor's edits: without one, the last hash stands
            self._hashed = (edits, hash_weights(Stored(self.hf_model)))
        return {"model": self.name, "revision": self.revision, "weights": self._hashed[1]}

    # ---------------------------------------------------------------- inside

    def _fed(self, inputs: Inputs) -> dict[str, Any]:
        return self.family.join(self.hf_model, inputs.kwargs())

    def _positions(self, mask: Tensor) -> dict[str, Tensor]:
        """Return positions counted from each row's first real token where there is padding, as `generate` counts them."""
        first = self.family.first_position
        if first is None or bool(mask.all()):
            return {}
        return {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0) + first}

    def _note_run(self, inputs: Inputs) -> None:
        """Tell those who watch hooks that the model runs, on what. Raises TypeError for what is no Inputs."""
        if not isinstance(inputs, Inputs):
            raise TypeError(
                f"a model reads Inputs, got a {type(inputs).__name__}: make them by model.to_inputs(text, images=...)"
            )
        for watch in self._watchers:
            watch.ran, watch.media = True, watch.media or bool(inputs.tower)


def _keep(cached: dict[str, Tensor], name: str) -> Callable[[Tensor, Any], None]:
    return lambda activation, hook: cached.__setitem__(name, activation.detach())
