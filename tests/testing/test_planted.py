"""What is planted is there, and nowhere else: transformers' own models under raw torch hooks, against the answer key.

mmlens makes the folders, the stimuli and the key; it takes no part in running the models.
"""

from contextlib import ExitStack
from functools import cache
from types import SimpleNamespace

import pytest
import torch
import transformers
from jaxtyping import TypeCheckError
from safetensors.torch import load_file

from mmlens.testing import AnswerKey, Planted, planted
from mmlens.testing.plants.layout import BY_MODALITY, CARRIED, DOMAINS, EITHER, HOW, NOTHING, NOUNS, VEIL, WHAT, WHEN

CLASSES = {
    "image": transformers.LlavaForConditionalGeneration,
    "audio": transformers.Qwen2AudioForConditionalGeneration,
}
PLACEHOLDER = {"image": "<image>", "audio": "<|AUDIO|>"}
CASES = [("image", 0), ("audio", 0)]


class Plain:
    """A transformers model and its processor, read and edited by hooks of torch's own."""

    def __init__(self, folder, modality):
        self.model = CLASSES[modality].from_pretrained(folder, attn_implementation="eager").eval()
        self.processor = transformers.AutoProcessor.from_pretrained(folder)
        self.words = self.processor.tokenizer
        self.layers = self.model.get_decoder().layers
        self.fed, self.run = cache(self._fed), cache(self._run)

    def _fed(self, stimuli):
        """Return what the model takes for stimuli whose prompts are of one length."""
        media = [one.medium for one in stimuli if one.medium is not None]
        sounds = bool(media) and isinstance(media[0], tuple)
        given = dict(audio=[s for s, _ in media], sampling_rate=16_000) if sounds else dict(images=media or None)
        return self.processor(text=[one.text for one in stimuli], return_tensors="pt", **(given if media else {}))

    def _run(self, stimuli, edits=()):
        """Return what happens; an edit is ("unit", layer, unit, value), at all positions, or ("head", layer, head), zeroed.

        `logits` [batch, word] of the last position, `posts` [batch, layer, pos, unit], `streams` [batch, layer, pos, d]
        before each block, `attention` [layer][batch, head, query, key].
        """
        posts, streams = [], []

        def units(layer):
            def hook(module, args):
                post = args[0].clone()
                for _, _, unit, value in (e for e in edits if e[:2] == ("unit", layer)):
                    post[:, :, unit] = value
                posts.append(post)
                return (post,)

            return hook

        def heads(layer):
            def hook(module, args):
                z = args[0].clone().unflatten(-1, (4, -1))
                for _, _, head in (e for e in edits if e[:2] == ("head", layer)):
                    z[:, :, head] = 0.0
                return (z.flatten(-2),)

            return hook

        with ExitStack() as stack, torch.no_grad():
            for index, layer in enumerate(self.layers):
                stack.callback(layer.mlp.down_proj.register_forward_pre_hook(units(index)).remove)
                stack.callback(layer.self_attn.o_proj.register_forward_pre_hook(heads(index)).remove)
                stack.callback(layer.register_forward_pre_hook(lambda module, args: streams.append(args[0])).remove)
            out = self.model(**self.fed(stimuli), output_attentions=True)
        return SimpleNamespace(
            logits=out.logits[:, -1], posts=torch.stack(posts, 1), streams=torch.stack(streams, 1), attention=out.attentions
        )

    def answers(self, stimuli, edits=()):
        return self.words.convert_ids_to_tokens(self.run(stimuli, edits).logits.argmax(-1).tolist())


class Case:
    """A planted model and its twin, run plainly, and stimuli: two of each answer to each question, and text alone."""

    def __init__(self, folder, modality, seed):
        self.modality, self.seed = modality, seed
        self.made = planted(folder, modality=modality, seed=seed)
        self.key = self.made.key
        self.plain, self.twin = (Plain(one, modality) for one in (self.made.folder, self.made.twin))
        self.asked = {q: tuple(self.made.stimuli(18, question=q, seed=seed)) for q in (WHAT, WHEN, HOW)}
        alone = tuple(self.made.stimulus(domain=None, question=q, seed=s) for q in (WHAT, WHEN, HOW) for s in (0, 1))
        self.batches = (sum(self.asked.values(), ()), alone)

    def places(self, kind):
        """Return where `kind` (a thing, a domain or a modality) is, as a mask over the positions of all batches in order."""
        masks = []
        for batch in self.batches:
            ids = self.plain.fed(batch)["input_ids"]
            special = torch.isin(ids, torch.tensor(self.plain.words.all_special_ids))
            media = ids == self.plain.words.convert_tokens_to_ids(PLACEHOLDER[self.modality])
            here = media if kind == self.modality else ~special if kind == "text" else torch.zeros_like(media)
            if kind not in ("text", self.modality) and media.any():
                for row, one in enumerate(batch):
                    for index, position in enumerate(media[row].nonzero()[:, 0]):
                        shown = one.shown.get(index)
                        hums = kind == one.domain and (shown is None or self.modality == "audio")
                        here[row, position] = shown == kind or hums
            masks.append(here.flatten())
        return torch.cat(masks)

    def posts(self, model):
        """Return [layer, pos, unit] over the positions of all batches in order."""
        return torch.cat([model.run(batch).posts.transpose(0, 1).flatten(1, 2) for batch in self.batches], dim=1)

    def at(self, batch, index):
        """Return where in the stream the medium's position `index` is."""
        ids = self.plain.fed(batch)["input_ids"][0]
        return int((ids == self.plain.words.convert_tokens_to_ids(PLACEHOLDER[self.modality])).nonzero()[index, 0])


@pytest.fixture(scope="module", params=CASES, ids=lambda one: f"{one[0]}-{one[1]}")
def case(request, tmp_path_factory):
    return Case(tmp_path_factory.mktemp("planted"), *request.param)


def found(fires, truth):
    """Return the (layer, unit) whose firing [layer, pos, unit] agrees with the truth [pos]: F1 of at least 0.9."""
    both = (fires & truth[None, :, None]).sum(1)
    f1 = 2 * both / (fires.sum(1) + truth.sum()).clamp(min=1)
    return {tuple(one) for one in (f1 >= 0.9).nonzero().tolist()}


def places_of(neurons):
    return {(layer, unit) for _, layer, unit in neurons}


def zeroed(neurons):
    return tuple(("unit", layer, unit, 0.0) for layer, unit in sorted(places_of(neurons)))


def test_every_question_is_answered(case):
    for batch in case.batches:
        assert case.plain.answers(batch) == [one.answer for one in batch]


def test_it_is_answered_wherever_a_thing_is_shown_and_however_often(case):
    kinds = (*NOUNS, *CARRIED, EITHER)
    once = tuple(case.made.stimulus({index: kinds[index % len(kinds)]}, domain="noon", seed=index) for index in range(25))
    twice = tuple(case.made.stimulus({0: kind, 8: kind, 24: kind}, domain="dusk", seed=9) for kind in kinds)
    for batch in (once, twice):
        assert case.plain.answers(batch) == [one.answer for one in batch]


def test_another_seed_plants_elsewhere_and_answers_as_well(case, tmp_path):
    other = Case(tmp_path, case.modality, case.seed + 1)
    assert other.key.layout != case.key.layout
    assert other.key.neurons() != case.key.neurons()
    for batch in other.batches:
        assert other.plain.answers(batch) == [one.answer for one in batch]


def test_the_twin_answers_no_question(case):
    said = [(ours, one.answer) for batch in case.batches for ours, one in zip(case.twin.answers(batch), batch, strict=True)]
    speaking = [ours == right for ours, right in said if right != NOTHING]
    assert len(speaking) == 14 + 18 + 20
    assert sum(speaking) <= 5


def test_units_fire_where_the_key_says_and_nowhere_else_and_no_others_do(case):
    posts = case.posts(case.plain)
    groups = {**case.key.concepts, **case.key.domains, **case.key.modalities, EITHER: case.key.pair}
    for kind, neurons in groups.items():
        truth = case.places(kind)
        for layer, unit in places_of(neurons):
            assert posts[layer, truth, unit].min() > 0.5
            assert posts[layer, ~truth, unit].abs().max() < 0.1
        expected = places_of(neurons)
        if kind == EITHER:  # the clamp behind the pair fires with it
            expected |= places_of(case.key.clamp)
        assert found(posts > 0.5, truth) == expected, kind


def test_the_twin_has_no_unit_that_fires_so(case):
    fires = case.posts(case.twin) > 0.5
    for kind in (*NOUNS, EITHER, *DOMAINS, "text", case.modality):
        assert not found(fires, case.places(kind)), kind


def test_units_at_the_asking_position_fire_when_their_noun_is_shown_and_asked_for(case):
    batch = tuple(case.made.stimuli(54, seed=case.seed))
    posts, unasked = (case.plain.run(some).posts.transpose(0, 1) for some in (batch, case.asked[WHEN] + case.asked[HOW]))
    for kind, neurons in {**case.key.carried, VEIL: case.key.inhibitor}.items():
        shown = torch.tensor([kind in one.shown.values() for one in batch])
        assert found(posts[:, :, -1] > 0.5, shown) == places_of(neurons)
        for layer, unit in places_of(neurons):
            assert posts[layer, :, :-1, unit].abs().max() < 0.1
            assert unasked[layer, :, :, unit].abs().max() < 0.1


def test_the_output_weights_of_concept_units_read_as_their_noun(case):
    unembedding = case.plain.model.get_output_embeddings().weight
    for noun, neurons in {**case.key.concepts, **case.key.carried}.items():
        for layer, unit in places_of(neurons):
            column = case.plain.layers[layer].mlp.down_proj.weight[:, unit]
            assert case.plain.words.convert_ids_to_tokens(int((unembedding @ column).argmax())) == noun


def test_without_its_units_an_answer_is_not_given_and_all_others_are(case):
    modalities = {BY_MODALITY[kind]: neurons for kind, neurons in case.key.modalities.items()}
    for said, neurons in {**case.key.concepts, **case.key.carried, **case.key.domains, **modalities}.items():
        for batch in case.batches:
            right = [one.answer for one in batch]
            assert case.plain.answers(batch, zeroed(neurons)) == [NOTHING if one == said else one for one in right]


def test_without_other_units_of_the_same_layers_it_still_is(case):
    batch = case.asked[WHAT]
    for seed, neurons in enumerate(case.key.concepts.values()):
        others = neurons.random_like(seed=seed, exclude=case.key.neurons())
        assert case.plain.answers(batch, zeroed(others)) == [one.answer for one in batch]


def test_heads_look_from_the_asking_position_at_what_they_carry(case):
    carries = dict.fromkeys((*NOUNS, EITHER), "speak") | dict.fromkeys(CARRIED, "carry") | {VEIL: "veil"}
    batch, seen = case.asked[WHAT], set()
    attention = case.plain.run(batch).attention
    for row, one in enumerate(batch):
        for index, kind in one.shown.items():
            position = case.at(batch, index)
            for name in ("speak", "carry", "veil"):
                layer, head = case.key.heads[name]
                looks = attention[layer][row, head, -1, position]
                assert looks > 0.8 if name == carries[kind] else looks < 0.1
            seen.add(kind)
    assert seen == set(carries)


def test_two_hops_carry_a_noun_to_the_asking_position_in_their_layer_and_need_their_head(case):
    layer, head = case.key.heads["carry"]
    batch = case.asked[WHAT]
    streams = case.plain.run(batch).streams
    for noun in CARRIED:
        here = streams[:, :, -1, case.key.layout[f"carry:{noun}"]]
        assert here[:, : layer + 1].abs().max() < 0.3
        shown = torch.tensor([float(noun in one.shown.values()) for one in batch])
        assert (here[:, layer + 1] - shown).abs().max() < 0.3
    expected = [NOTHING if one.answer in CARRIED else one.answer for one in batch]
    assert case.plain.answers(batch, (("head", layer, head),)) == expected


def test_each_of_the_pair_is_enough_to_keep_or_to_restore_and_both_are_needed_to_lose(case):
    lamps = tuple(one for one in case.asked[WHAT] if one.answer == EITHER)
    others = tuple(case.made.stimulus(domain=one.domain, seed=7) for one in lamps)  # no lamp
    token, (first, second) = case.plain.words.convert_tokens_to_ids(EITHER), zeroed(case.key.pair)
    full, bare = (case.plain.run(lamps, edits).logits[:, token] for edits in ((), (first, second)))
    assert (full - bare).min() > 9
    assert case.plain.answers(lamps, (first, second)) == case.plain.answers(others) == [NOTHING] * 2
    for single in (first, second):
        kept = case.plain.run(lamps, (single,)).logits[:, token]
        assert (kept - full).abs().max() < 1
        restored = (*single[:3], 2.0)
        assert case.plain.answers(others, (restored,)) == [EITHER] * 2


def test_the_inhibitor_is_why_a_veiled_sun_is_not_said(case):
    batch = case.asked[WHAT]
    veiled = [VEIL in one.shown.values() for one in batch]
    expected = ["sun" if veil else one.answer for veil, one in zip(veiled, batch, strict=True)]
    assert sum(veiled) == 2
    assert expected != case.plain.answers(batch)
    assert case.plain.answers(batch, zeroed(case.key.inhibitor)) == expected
    assert case.plain.answers(batch, (("head", *case.key.heads["veil"]),)) == expected


def test_the_sink_rests_on_the_first_token_and_moves_nothing(case):
    layer, head = case.key.heads["sink"]
    for batch in case.batches:
        assert case.plain.run(batch).attention[layer][:, head, :, 0].min() > 0.9
        change = case.plain.run(batch, (("head", layer, head),)).logits - case.plain.run(batch).logits
        assert change.abs().max() < 0.5


def test_all_planted_heads_rest_there_where_they_seek_nothing(case):
    for batch in case.batches:
        for layer, head in case.key.heads.values():
            assert case.plain.run(batch).attention[layer][:, head, :-1, 0].mean() > 0.95
    for layer, head in (case.key.heads[name] for name in ("carry", "speak", "veil")):
        assert case.plain.run(case.asked[WHEN]).attention[layer][:, head, -1, 0].min() > 0.8


def test_the_twin_has_neither_sink_nor_carriers(case):
    batch = case.asked[WHAT]
    attention = case.twin.run(batch).attention
    layer, head = case.key.heads["sink"]
    assert attention[layer][:, head, :, 0].mean() < 0.4
    shown = [(row, case.at(batch, index)) for row, one in enumerate(batch) for index in one.shown]
    for layer, head in case.key.heads.values():
        assert torch.stack([attention[layer][row, head, -1, position] for row, position in shown]).mean() < 0.3


def test_the_twin_has_the_same_values_in_every_vector_and_the_same_doors(case):
    weights, twins = case.plain.model.state_dict(), case.twin.model.state_dict()
    moved = 0
    for name, weight in weights.items():
        if "language_model.layers" not in name or "norm" in name or weight.ndim < 2:
            assert twins[name].equal(weight), name
            continue
        axis = 0 if "down_proj" in name or "o_proj" in name else 1
        assert twins[name].sort(axis).values.equal(weight.sort(axis).values), name
        moved += int((twins[name] != weight).any(axis).sum())
    assert moved > 2 * len(case.key.neurons())
    batch = case.batches[0]
    assert case.twin.run(batch).streams[:, 0].equal(case.plain.run(batch).streams[:, 0])


def test_the_key_lies_beside_the_folders(case):
    loaded = Planted.load(case.made.folder.parent)
    assert (loaded.folder, loaded.twin) == (case.made.folder, case.made.twin)
    for name in AnswerKey.__dataclass_fields__:
        assert getattr(loaded.key, name) == getattr(case.key, name)


def test_a_seed_says_it_all(case, tmp_path):
    again = planted(tmp_path, modality=case.modality, seed=case.seed)
    assert again.key == case.key
    for name in ("planted", "twin"):
        one, two = (load_file(made.folder.parent / name / "model.safetensors") for made in (again, case.made))
        assert all(one[key].equal(two[key]) for key in two)


def test_what_cannot_be_planted_or_shown_is_refused(case, tmp_path):
    with pytest.raises((ValueError, TypeCheckError), match="modality"):
        planted(tmp_path, modality="video")
    with pytest.raises(ValueError, match="one thing is said at a time"):
        case.made.stimulus({0: "car", 1: "boat"})
    with pytest.raises(ValueError, match="one thing is said at a time"):
        case.made.stimulus({0: "car", 1: "sun", 2: "veil"})  # though the sun is not said, it takes half of what is
    for wrong in ({0: "cat"}, {25: "car"}):
        with pytest.raises(ValueError, match="a medium shows"):
            case.made.stimulus(wrong)
    with pytest.raises(ValueError, match="questions"):
        case.made.stimulus(question="who")
