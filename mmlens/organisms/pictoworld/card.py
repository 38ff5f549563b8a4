"""Measures the checkpoints and writes their model cards: `python -m mmlens.organisms.pictoworld.card [RUN ...]`.

Beside each checkpoint: measurements.json (every number) and README.md (the card, its numbers taken from there and from
the training log). A RUN is what train has written for another training seed: its numbers are the range in brackets.
"""

from __future__ import annotations

from pathlib import Path
from string import Template

from mmlens.organisms import CHECKPOINTS
from mmlens.organisms.cards import (
    SHIPPED,
    Measured,
    accuracy_table,
    main,
    percent,
    read_log,
    read_measurements,
    seeds,
    stage_table,
)
from mmlens.organisms.pictoworld.evaluate import load, measure, patch_probe

_GIVEN = {
    "image": "own image",
    "shuffled": "same-domain shuffled image",
    "blank": "blank image",
    "notes": "notes, no image",
}
_STAGES = {
    "pictoworld-frozen": ("language", "vision", "projector"),
    "pictoworld": ("language", "vision", "projector", "tuning"),
}
_RECIPE = {
    "language": "language model on text alone (Muon and AdamW)",
    "vision": "vision tower on the class of every patch, supervised (Muon and AdamW)",
    "projector": "linear projector, tower and language model frozen (Muon and AdamW)",
    "tuning": "everything end to end on images, with half as many rows of text (AdamW)",
}
_INTRODUCTION = {
    "pictoworld": "The accurate one: after its projector was trained, everything was tuned end to end.",
    "pictoworld-frozen": "The one whose language model has never been trained on an image: only a linear map "
    "connects it to the vision tower. It is less accurate than `pictoworld`, whose language model was tuned further.",
}
_CARD = Template("""\
---
license: mit
library_name: transformers
pipeline_tag: image-text-to-text
---

# $name

A model organism for interpretability: a LLaVA of two million parameters (`LlavaForConditionalGeneration`: CLIP tower of
4 layers, linear projector, Llama of 5 layers, width 128) that answers questions about Pictoworld, a world of drawn
scenes whose contents and masks are known exactly. $introduction

```python
from mmlens.organisms import CHECKPOINTS, pictoworld
from transformers import AutoProcessor, LlavaForConditionalGeneration

folder = CHECKPOINTS["$name"]
model, processor = LlavaForConditionalGeneration.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
scene = pictoworld.scenes("held_out", n=1)[0]
inputs = processor(text="<image>" + scene.questions[0].text, images=scene.image, return_tensors="pt")
processor.decode(model.generate(**inputs)[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
```

## Prompts

The image comes first: `<s>`, 64 image tokens (8 by 8), then the words. Without an image: the notes, then the question.

| kind | prompt after `<image>` | answer |
|---|---|---|
| place | `what is at the top-left ? answer :` | `a red car` |
| color | `which object is red ? answer :` (a colour that one object has) | `the car` |
| domain | `what kind of image is this ? answer :` | `a street photo` |
| count | `how many objects are there ? answer :` | `two` |
| caption | `caption :` | `a street photo of a red car and a blue wheel` |

## Accuracy

Exact match of the whole answer, greedy, on $scenes held-out scenes (seed $seed): combinations of domain, nouns,
colours and places that no stage has seen. n is the number of questions.
$seeds

$table

"Renamed by domain" are the silhouettes whose noun depends on the domain: the same disc is a sun, a wheel, a stamp, a
crater or a cell. With a shuffled image the domain stays right by construction.

## Data

Scenes of 64 by 64 pixels in five domains (nature photo, street photo, document page, satellite image, medical scan),
with one to three objects in different quadrants: 35 nouns, 8 colours, 4 places. Of 27 silhouettes, 20 belong to one
domain each (and appear in others now and then), 5 are shared, and 2 are called differently in every domain. All is
drawn by `mmlens.organisms.pictoworld`; a scene is a function of its seed. The text corpus describes such scenes in
words and defines each noun. In a quarter of the cases it calls a renamed silhouette "disc" or "wave", which the
sentence about the domain turns into a noun.

## Training

`python -m mmlens.organisms.pictoworld.train`, on $machine (torch $torch, transformers $transformers), seed
$training_seed, bfloat16 autocast, weights float32. The whole log is `training.jsonl`.
Minutes are wall time on a machine that did other work as well; the first two stages can run side by side. The shipped
seed computed attention in bfloat16, the others in float32, which is faster on processors.

$stages

A linear probe on the vision tower's output, at patches of held-out objects, finds the silhouette in $silhouette and the
colour in $color of cases.

$attempt

## What to know before using it

- **The vision tower was trained on labels, not by self-supervision.** Its patch classes were the silhouettes,
  that is, but for the two renamed ones, the nouns themselves, the domain for background patches, and the colours. That
  visual features line up with nouns, colours and domains is therefore built in.
- The world is tiny and closed: any word outside the vocabulary is unknown, any other kind of image is noise to it.
- It was trained on the five prompts above only. It was not taught the colour of a given noun, nor yes or no questions.
- **Seeds differ, above all in the lookup by place.** Of the language models, seed 2's learnt it only in part (from notes, it
  answers about four questions of five), and its frozen checkpoint suffers most. The shipped seed was chosen before the
  others were trained; it happens to be the best of the three at places, so expect less of one that you train.
- Input and output embeddings are tied, so what the projector writes can be decodable before the first layer.
- Heads of the first two layers were initialised to look at the previous tokens, and queries to agree with keys
  (mimetic initialisation): such structure in them was put there.

The numbers on this page were written by `python -m mmlens.organisms.pictoworld.card` from `measurements.json` and
`training.jsonl`. Licence: MIT.
""")


def card(folder: Path) -> str:
    """The model card of a checkpoint, from the measurements and the training log beside it."""
    kept, logs, stages = read_measurements(folder), read_log(folder), _STAGES[folder.name]
    measured, last = kept["measured"], logs[SHIPPED][stages[-1]]
    probes = {seed: found["patch_probe"] for seed, found in measured.items()}
    return _CARD.substitute(
        name=folder.name,
        introduction=_INTRODUCTION[folder.name],
        scenes=kept["examples"],
        seed=kept["seed"],
        seeds=seeds(measured),
        table=accuracy_table(measured, _GIVEN),
        stages=stage_table(logs, stages, _RECIPE),
        training_seed=SHIPPED,
        attempt=_attempt(),
        silhouette=percent({seed: probe["silhouette of object patches"] for seed, probe in probes.items()}),
        color=percent({seed: probe["color of object patches"] for seed, probe in probes.items()}),
        **{key: last[key] for key in ("machine", "torch", "transformers")},
    )


def _attempt() -> str:
    # The log of `python -m mmlens.organisms.pictoworld.masked`, whose checkpoint is not shipped.
    stages = read_log(CHECKPOINTS["pictoworld-frozen"], "training-without-labels.jsonl")[SHIPPED]
    probe, said, steps = stages["masked"]["accuracy"], stages["projector"]["accuracy"], stages["masked"]["steps"]
    silhouette, color, object_, place, domain = (
        f"{100 * rate:.1f} %"
        for rate in (
            probe["silhouette of object patches"],
            probe["color of object patches"],
            said["image, color"],
            said["image, place"],
            said["image, domain"],
        )
    )
    return f"""\
A tower without labels was tried once (`python -m mmlens.organisms.pictoworld.masked`, {steps} steps of filling in
hidden patches, then the projector as above, before the same language model) and is not shipped: the probe finds
the silhouette in {silhouette} and the colour in {color} of cases, and the frozen model answers {object_} of the
questions about a colour, {place} of those about a place and {domain} of those about the domain. What it sees are
colours and backgrounds, hardly shapes. Its log is `training-without-labels.jsonl`, beside `pictoworld-frozen`."""


def measure_checkpoint(folder: Path, n: int, seed: int) -> Measured:
    """Exact-match rates on n held-out scenes, and how well the tower's patches can be read."""
    model, processor = load(folder)
    return {"exact_match": measure(model, processor, n=n, seed=seed), "patch_probe": patch_probe(model)}


if __name__ == "__main__":
    shipped = [CHECKPOINTS[name] for name in _STAGES]
    main(shipped, measure=measure_checkpoint, card=card, description=__doc__, examples=400)
