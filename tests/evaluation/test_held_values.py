"""What neurons are held at: transformers' own model under hooks of torch's own, one example at a time, without a cache."""

from contextlib import ExitStack

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from support import picture, unhooked

from mmlens import Ablation, Example, Neurons, evaluate
from mmlens.evaluation import reference
from mmlens.evaluation.reference import SamplePositions
from mmlens.hooks import ablate
from mmlens.sweeps import sweep

TEXTS = (
    "a red car",
    "what is on the left of the blue tree ?",
    "the boat",
    "which of the red car and the tree is on the left ?",
)
NEW = 4
IMAGE, TEXT = 2, 0


@pytest.fixture(scope="module")
def examples():
    return [
        Example(text, images=None if place == 2 else picture(place), answers=("the red tree",), label="t", id=str(place))
        for place, text in enumerate(TEXTS)
    ]


@pytest.fixture(scope="module")
def neurons(small):
    chosen = torch.randperm(48, generator=torch.Generator().manual_seed(5))[:30].tolist()
    layers = range(len(small.widths["language"]))
    return Neurons.of([(layer, unit) for layer in layers for unit in chosen[layer : layer + 20]], small.widths)


class Raw:
    """A plain model of one example at a time: what its gated MLPs compute is read, and edited, by hooks of torch."""

    def __init__(self, plain, model):
        self.plain, self.model = plain, model
        self.decoder = plain.model.language_model
        self.layers = self.decoder.layers

    def inputs(self, example, answer=""):
        return self.model.to_inputs(example.text, images=example.images, answer=answer)

    @torch.no_grad()
    def run(self, fed, edit=None):
        """Return the logits [pos, word] and every layer's values by site [pos, unit]; `edit` returns what enters W_out."""
        seen = [{} for _ in self.layers]
        with ExitStack() as stack:
            for index, layer in enumerate(self.layers):
                mlp, own = layer.mlp, seen[index]

                def gate(module, args, out, own=own):
                    own["pre"] = out[0]

                def up(module, args, out, own=own):
                    own["up"] = out[0]

                def down(module, args, own=own, index=index, act=mlp.act_fn):
                    own["gate_act"], own["post"] = act(own["pre"]), args[0][0]
                    return None if edit is None else (edit(index, own)[None],)

                stack.callback(mlp.gate_proj.register_forward_hook(gate).remove)
                stack.callback(mlp.up_proj.register_forward_hook(up).remove)
                stack.callback(mlp.down_proj.register_forward_pre_hook(down).remove)
            if isinstance(fed, torch.Tensor):
                logits = self.plain.lm_head(self.decoder(inputs_embeds=fed).last_hidden_state)[0]
            else:
                logits = self.plain(**fed).logits[0]
        return logits, seen

    def log_prob(self, example, edit=None):
        inputs = self.inputs(example, example.answers[0])
        logits = self.run(inputs.kwargs(), edit)[0].log_softmax(-1)
        new = inputs.answer[0].nonzero()[:, 0]
        return sum(float(logits[at - 1, inputs.tokens[0, at]]) for at in new)

    def written(self, example, edit=None):
        """Return what is written greedily when the whole stream is run anew for every token."""
        streams, new = [], []
        keep = self.layers[0].register_forward_pre_hook(lambda module, args: streams.append(args[0]))
        self.run(self.inputs(example).kwargs())
        keep.remove()
        for _ in range(NEW):
            new.append(int(self.run(streams[0], edit)[0][-1].argmax()))
            streams[0] = torch.cat([streams[0], self.plain.get_input_embeddings().weight[new[-1]][None, None]], 1)
        if (end := self.model.tokenizer.eos_token_id) in new:
            new = new[: new.index(end)]
        return self.model.tokenizer.decode(new, skip_special_tokens=True).strip()


@pytest.fixture(scope="module")
def raw(small, small_folder):
    return Raw(unhooked(small_folder), small)


@pytest.fixture(scope="module")
def everything(raw, examples):
    """Every example's values at all positions of its prompt, and what each position holds."""
    return [(raw.run(raw.inputs(one).kwargs())[1], raw.inputs(one).modality[0]) for one in examples]


def put(values, units, new, site="post", up=None, where=None):
    """Return values [pos, unit] with units at `new`, at the chosen positions."""
    edited = values.clone()
    edited[:, units] = new * up[:, units] if site == "gate_act" else new
    return edited if where is None else torch.where(where[:, None], edited, values)


def means(everything, site, where):
    chosen = [
        [own[layer][site][kinds == IMAGE] if where else own[layer][site] for own, kinds in everything]
        for layer in range(len(everything[0][0]))
    ]
    return [torch.cat(parts).double().mean(0).float() for parts in chosen]


def agrees(small, raw, examples, ablation, edit, as_written=None):
    """Check scores and what is written, in batches of 3, against the plain model, edited for each example."""
    as_written = as_written or edit
    whole = evaluate(small, examples, "log_prob", {"it": ablation}, draws=0, batch_size=3, progress=False)
    for index, scores in ((0, None), (1, edit)):
        ours = [raw.log_prob(one, None if scores is None else scores(place)) for place, one in enumerate(examples)]
        np.testing.assert_allclose(whole.scores[index], ours, atol=2e-5)
    assert (whole.scores[0] - whole.scores[1]).abs().max() > 1e-3
    written = evaluate(
        small, examples, "exact_match", {"it": ablation}, draws=0, batch_size=3, max_new_tokens=NEW, progress=False
    )
    assert list(written.answers["it"]) == [raw.written(one, as_written(place)) for place, one in enumerate(examples)]
    assert written.answers["it"] != written.answers["baseline"] or ablation.where


@pytest.mark.parametrize(("site", "where"), [("post", None), ("gate_act", None), ("post", ("image",))])
def test_a_mean_is_that_over_all_positions_of_the_reference(small, raw, examples, neurons, everything, site, where):
    held = means(everything, site, where)

    def edit(place):
        def fn(layer, own):
            units = neurons.by_layer()["language", layer]
            kinds = everything[place][1]
            here = None
            if where:
                here = torch.zeros(len(own["post"]), dtype=torch.bool)
                here[: len(kinds)] = kinds == IMAGE
            return put(own["post"], units, held[layer][units], site, own["up"], here)

        return fn

    agrees(small, raw, examples, Ablation(neurons, value="mean", site=site, where=where), edit)


@pytest.mark.parametrize("site", ["post", "gate_act", "pre"])
def test_the_lowest_activation_is_that_of_the_layer_in_the_same_example_and_step(
    small, raw, examples, neurons, everything, site
):
    def edit(given):
        """Return the edit of an example; what is `given` is run with the prompt, what is written one by one."""

        def of(place):
            def fn(layer, own):
                units, length = neurons.by_layer()["language", layer], len(everything[place][1])
                low = own[site].amin(1, keepdim=True)
                low[: None if given else length] = low[: None if given else length].min()
                if site == "pre":
                    values = own["pre"].clone()
                    values[:, units] = low
                    return raw.layers[layer].mlp.act_fn(values) * own["up"]
                return put(own["post"], units, low, site, own["up"])

            return fn

        return of

    agrees(small, raw, examples, Ablation(neurons, value="layer_min", site=site), edit(True), edit(False))


@pytest.mark.parametrize("site", ["post", "gate_act"])
def test_a_resampled_value_is_one_of_another_position_the_same_for_all_neurons(
    small, raw, examples, neurons, everything, site, monkeypatch
):
    numbers = [np.random.default_rng((0, place)).random(len(kinds)) for place, (_, kinds) in enumerate(everything)]
    order = np.argsort(np.concatenate(numbers))
    pool = [
        torch.cat([own[layer][site] for own, _ in everything])[order][: reference.ROWS]
        for layer in range(len(everything[0][0]))
    ]
    used = []

    def edit(place):
        def fn(layer, own):
            units = neurons.by_layer()["language", layer]
            rows = np.random.default_rng((0, place)).integers(len(pool[0]), size=len(own["post"]))
            used.append(tuple(rows[:3]))
            return put(own["post"], units, pool[layer][rows][:, units], site, own["up"])

        return fn

    agrees(small, raw, examples, Ablation(neurons, value="resample", site=site), edit)
    assert len(set(used)) == len(examples)


def test_few_positions_of_many_are_kept_whatever_the_order_and_the_parts(small, examples, neurons, everything):
    def kept(some, start=0):
        accumulator = SamplePositions(neurons, group="image", rows=5)
        padded = [Example("a") for _ in range(start)]
        sweep(small, [*padded, *some], {"it": accumulator}, batch_size=3, progress=False)
        return accumulator

    whole, first, second = kept(examples), kept(examples[:1]), SamplePositions(neurons, group="image", rows=5)
    sweep(small, [Example("a", id="no picture"), *examples[1:]], {"it": second}, batch_size=1, progress=False)
    second.merge_state(first)
    ours, merged = whole.result(small), second.result(small)
    torch.testing.assert_close(ours.values, merged.values)
    numbers, values = [], []
    for place, (own, kinds) in enumerate(everything):
        here = kinds == IMAGE
        numbers.append(np.random.default_rng((0, place)).random(len(kinds))[here])
        values.append(torch.stack([own[layer]["post"][here, unit] for _, layer, unit in neurons], 1))
    expected = torch.cat(values)[np.argsort(np.concatenate(numbers))[:5]]
    torch.testing.assert_close(ours.values, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours.at(neurons[3:7]), ours.values[:, 3:7])


def test_rows_of_values_are_drawn_and_one_row_is_always_that_row(small, examples, neurons):
    inputs = small.to_inputs(TEXTS[0], images=picture(0))
    row = torch.linspace(-1, 1, len(neurons))
    ours = small.run_with_hooks(inputs, fwd_hooks=Ablation(neurons, value=row[None]).hooks(small, inputs))
    torch.testing.assert_close(ours, small.run_with_hooks(inputs, fwd_hooks=ablate(neurons, value=row)), rtol=0, atol=0)


def test_a_tower_is_held_at_each_examples_own_lowest_and_mean(small, raw, examples):
    two = [examples[0], examples[1]]
    chosen = Neurons.of([("vision", 0, unit) for unit in range(0, 40, 2)], small.widths)
    layer = raw.plain.model.vision_tower.encoder.layers[0].mlp
    values = []

    def logits(one, held):
        handle = layer.fc2.register_forward_pre_hook(lambda _, args: (held(args[0]),))
        with torch.no_grad():
            inputs = small.to_inputs(one.text, images=one.images, answer=one.answers[0])
            found = raw.plain(**inputs.kwargs()).logits[0].log_softmax(-1)
        handle.remove()
        new = inputs.answer[0].nonzero()[:, 0]
        return sum(float(found[at - 1, inputs.tokens[0, at]]) for at in new)

    def at(value):
        def held(post):
            edited = post.clone()
            edited[..., chosen.unit] = value(post)
            return edited

        return held

    for one in two:
        logits(one, lambda post: values.append(post) or post)
    mean = torch.cat(values).flatten(0, 1)[:, chosen.unit].mean(0)
    arms = {"low": Ablation(chosen, value="layer_min"), "mean": Ablation(chosen, value="mean")}
    found = evaluate(small, two, "log_prob", arms, draws=0, progress=False)
    expected = [[logits(one, at(value)) for one in two] for value in (lambda post: post.min(), lambda post: mean)]
    np.testing.assert_allclose(found.scores[1:], expected, atol=2e-5)
    assert (found.scores[1:] - found.scores[0]).abs().min() > 1e-5


def test_a_complement_and_its_set_are_everything(small, raw, examples, neurons):
    rest = Ablation(neurons, complement=True)
    assert len(rest.held) + len(neurons) == sum(small.widths["language"])
    assert not len(rest.held & neurons)
    both = lambda inputs: ablate(neurons) + rest.hooks(small, inputs)  # noqa: E731
    found = evaluate(small, examples, "log_prob", {"both": both, "rest": rest}, draws=0, progress=False)
    silent = [raw.log_prob(one, lambda layer, own: torch.zeros_like(own["post"])) for one in examples]
    np.testing.assert_allclose(found.scores[1], silent, atol=2e-5)

    def kept(layer, own):
        units = neurons.by_layer()["language", layer]
        edited = torch.zeros_like(own["post"])
        edited[:, units] = own["post"][:, units]
        return edited

    np.testing.assert_allclose(found.scores[2], [raw.log_prob(one, kept) for one in examples], atol=2e-5)


def test_the_control_of_an_ablation_holds_others_of_the_same_layers_likewise(small, neurons):
    own = Ablation(neurons[:9], value=torch.arange(9.0), where=("image",))
    control = own.random(3)
    assert {layer: len(units) for layer, units in control.held.by_layer().items()} == {
        layer: len(units) for layer, units in own.held.by_layer().items()
    }
    assert not len(control.held & neurons[:9])
    assert control.where == ("image",)
    mixed = Ablation(neurons[[20, 0, 21, 1]], value=torch.tensor([20.0, 0, 21, 1])).random(0)
    by_layer = {layer: sorted(mixed.value[indices].tolist()) for layer, indices in mixed.held.indices_by_layer().items()}
    assert by_layer == {("language", 1): [20.0, 21.0], ("language", 0): [0.0, 1.0]}
    left = Ablation(neurons[:9], complement=True).random(3)
    assert left.neurons == control.neurons
    assert left.complement


def test_what_can_not_be_held_is_refused(small, neurons):
    inputs = small.to_inputs("a")
    for options, said in (
        ({"value": "lowest"}, "'lowest'"),
        ({"value": torch.zeros(3)}, r"60 neurons; got \[3\]"),
        ({"where": ("left",)}, "got 'left'"),
        ({"site": "pre", "value": torch.zeros(2, 2, 60)}, "rows"),
    ):
        with pytest.raises((ValueError, TypeCheckError), match=said):
            Ablation(neurons, **options)
    with pytest.raises(ValueError, match=r"statistics\.at"):
        Ablation(neurons, value="mean").hooks(small, inputs)
    tower = Neurons.of([("vision", 0, 1)], small.widths)
    with pytest.raises(ValueError, match="without `where`"):
        Ablation(tower, where=("image",))


def test_an_ablation_saves_and_loads(neurons, tmp_path):
    own = Ablation(neurons, value=torch.arange(60.0), where=("image", "text"), complement=False)
    again = Ablation.load(own.save(tmp_path / "one"))
    assert (again.neurons, again.where, again.recipe()) == (own.neurons, own.where, own.recipe())
    assert Ablation(neurons).recipe() != Ablation(neurons[1:]).recipe() != Ablation(neurons[:-1]).recipe()
