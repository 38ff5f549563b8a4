"""Tables of the papers: each number is that of the function behind it, on Pictoworld and on a folder laid out as COCO's."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from mmlens import HookedMLLM
from mmlens.analysis import Region, concept_overlap, decode, grad_x_activation, interpretable, logit_contribution
from mmlens.neurons import top_k
from mmlens.organisms import pictoworld
from mmlens.papers import Reproduction, Shown, from_coco, from_pictoworld, pan2024, schwettmann2023
from mmlens.papers.captioned import captioned
from mmlens.targets import in_lexicon


@pytest.fixture(scope="module")
def model():
    return HookedMLLM.from_pretrained("pictoworld-frozen", device="cpu")


@pytest.fixture(scope="module")
def pictures():
    return from_pictoworld(pictoworld.scenes("held_out", n=3, seed=5))


@pytest.fixture(scope="module")
def read(model, pictures):
    how = dict(prompt=pictoworld.CAPTION_PROMPT, is_noun=in_lexicon, max_new_tokens=20, progress=False)
    return list(captioned(model, pictures, **how))


def test_a_caption_up_to_its_noun_is_what_predicts_the_noun(model, read):
    for one in read:
        for number, token in enumerate(one.targets.token):
            with torch.no_grad():
                said = model(one.up_to(model, number))[0, -1].argmax()
            assert said == token, "it was written greedily"


def test_schwettmanns_rows_are_those_of_the_functions(model, pictures, read, tmp_path):
    found = schwettmann2023.reproduce(
        model, pictures, prompt=pictoworld.CAPTION_PROMPT, top=30, ks=(0, 10), ablated=1, draws=1
    )
    shares, ious = [], []
    for place, one in enumerate(read):
        scored = grad_x_activation(model, one.up_to(model, 0), one.targets.token[:1], site="pre", reduce="max")
        neurons = top_k(scored.scores[0], 30, widths=model.widths)
        sign = torch.stack([scored.activation[0, layer, unit] for _, layer, unit in neurons])
        shares.append(interpretable(decode(model, neurons, k=10, sign=sign)).float().mean())
        noun = one.targets.words[0]
        if noun in pictures[place].objects:
            region = Region(noun, one.prompt, pictures[place].objects[noun], neurons[:5])
            ious.append(concept_overlap(model, [region], draws=1).iou[0])
    assert found.value("share that is interpretable") == pytest.approx(float(torch.stack(shares).mean()), abs=1e-6)
    assert found.value("IoU with the object", "neurons") == pytest.approx(float(torch.stack(ious).mean()), abs=1e-6)
    assert found.value("change of P(noun), 10 zeroed", "all") < found.value("change of P(noun), 10 zeroed", "random")
    row = next(one for one in found.rows if one.item == "share that is interpretable")
    assert (row.paper, row.tag, row.n) == (0.5, "paper", 3)
    assert "| S.6 | share that is interpretable | top 30 | 0.5 (paper) |" in found.markdown()
    assert len(found.table()) == len(found.rows)
    assert Reproduction.load(found.save(tmp_path / "tables")).markdown() == found.markdown()
    with pytest.raises(KeyError, match="rows are lexical overlap"):
        found.value("IoU")


def test_the_papers_metrics_get_the_papers_numbers_beside_them(model, pictures):
    scorers = {"BERTScore": lambda text, captions: float(len(captions)), "CLIPScore": lambda text, image: image.width}
    found = schwettmann2023.reproduce(
        model, pictures[:2], prompt=pictoworld.CAPTION_PROMPT, top=10, ks=(0, 2), ablated=1, draws=1, scorers=scorers
    )
    rows = {(one.item, one.condition): one for one in found.rows}
    assert rows["BERTScore", "neurons"].paper == 0.3848 and rows["BERTScore", "neurons"].value == 1
    assert rows["CLIPScore", "another picture's neurons"].paper == 21.74 and rows["CLIPScore", "neurons"].value == 64


def test_pans_rows_are_those_of_the_functions_and_weights_stay(model, pictures, read):
    before = model.identity()
    found = pan2024.reproduce(model, pictures, prompt=pictoworld.CAPTION_PROMPT, k=20, perturbed=2)
    assert model.identity() == before
    hits = []
    for one in read:
        scored = logit_contribution(model, one.whole, one.targets, site="gate_act")
        words = list(dict.fromkeys(one.targets.words))
        own = []
        for word in words:
            index = one.targets.words.index(word)
            neurons = top_k(scored.scores[index], 10, widths=model.widths)
            own.append(word in {w.strip() for row in decode(model, neurons, k=10).words for w in row})
        hits.append(np.mean(own))
    item = "noun among the words of its first 10"
    assert found.value(item, "without, as released") == pytest.approx(np.mean(hits))
    assert found.value("region invariance, k = 20", "same noun, shuffled picture") > 3 * found.value(
        "region invariance, k = 20", "by chance, same layers"
    )


def test_tables_need_captions_with_nouns(model, pictures):
    with pytest.raises(ValueError, match="only 0 got a caption with a noun"):
        schwettmann2023.reproduce(model, pictures[:2], prompt=pictoworld.CAPTION_PROMPT, is_noun=lambda word: False)


@pytest.fixture
def coco(tmp_path):
    """Two pictures: one with a cat and two dogs, one with a cat."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    boxes = [(1, 1, (2, 3, 10, 5)), (1, 2, (0, 0, 4, 4)), (1, 2, (20, 10, 4, 4)), (2, 1, (5, 5, 6, 6))]
    annotations = [
        {
            "id": number,
            "image_id": image,
            "category_id": category,
            "bbox": [x, y, w, h],
            "area": w * h,
            "iscrowd": 0,
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
        }
        for number, (image, category, (x, y, w, h)) in enumerate(boxes, 1)
    ]
    images = [{"id": n, "file_name": f"{n}.png", "width": 32, "height": 24} for n in (1, 2)]
    for one in images:
        Image.new("RGB", (32, 24), (one["id"] * 50,) * 3).save(tmp_path / "val2017" / one["file_name"])
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    whole = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(whole))
    said = {"images": images, "annotations": [{"id": 1, "image_id": 2, "caption": "a cat"}]}
    (tmp_path / "annotations" / "captions_val2017.json").write_text(json.dumps(said))
    return tmp_path


def test_a_folder_of_cocos_layout_gives_masks_of_what_is_there_once(coco):
    first, second = from_coco(coco)
    assert set(first.objects) == {"cat"} and second.captions == ("a cat",) and first.captions == ()
    mask = torch.zeros(24, 32, dtype=torch.bool)
    mask[3:8, 2:12] = True
    assert first.objects["cat"].equal(mask) and first.image == coco / "val2017" / "1.png"
    assert isinstance(first, Shown) and len(from_coco(coco, n=1)) == 1


def test_what_is_missing_of_coco_is_said(coco, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="annotations are looked for at"):
        from_coco(tmp_path / "nowhere")
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(ImportError, match=r'pip install "mmlens\[coco\]"'):
        from_coco(coco)
