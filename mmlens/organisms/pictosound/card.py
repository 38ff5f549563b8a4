"""Measures the checkpoints and writes their model cards: `python -m mmlens.organisms.pictosound.card [RUN ...]`.

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
from mmlens.organisms.pictosound.batches import CLASSES
from mmlens.organisms.pictosound.evaluate import load, measure, position_probe

_GIVEN = {
    "sound": "own sound",
    "shuffled": "another clip's sound",
    "silence": "silence",
    "notes": "notes, no sound",
}
_STAGES = {
    "pictosound-frozen": ("language", "tower", "projector"),
    "pictosound": ("language", "tower", "projector", "tuning"),
}
_RECIPE = {
    "language": "language model on text alone (Muon and AdamW)",
    "tower": "audio tower on the classes of every position, supervised (Muon and AdamW)",
    "projector": "linear projector, tower and language model frozen (Muon and AdamW)",
    "tuning": "everything end to end on sounds, with half as many rows of text (AdamW)",
}
_INTRODUCTION = {
    "pictosound": "The accurate one: after its projector was trained, everything was tuned end to end.",
    "pictosound-frozen": "The one whose language model has never been trained on a sound: only a linear map connects it\n"
    "to the audio tower. `pictosound` is the same model, tuned further.",
}
_CARD = Template("""\
---
license: mit
library_name: transformers
pipeline_tag: audio-text-to-text
---

# $name

A model organism for interpretability: a Qwen2-Audio of under two million parameters
(`Qwen2AudioForConditionalGeneration`: Whisper-like tower of 3 layers, width 96; linear projector; Qwen2 of 5 layers, width
128) that answers questions about Pictosound, a world of made sounds whose events and their times are known exactly.
$introduction

```python
from mmlens.organisms import CHECKPOINTS, pictosound
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

folder = CHECKPOINTS["$name"]
model, processor = Qwen2AudioForConditionalGeneration.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
clip = pictosound.clips("held_out", n=1)[0]
text = "<|audio_bos|><|AUDIO|><|audio_eos|>" + clip.questions[0].text
inputs = processor(text=text, audio=clip.samples, sampling_rate=pictosound.RATE, return_tensors="pt")
processor.decode(model.generate(**inputs)[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
```

## Prompts

The sound comes first: `<s>`, a begin token, 50 audio tokens of 40 ms each, an end token, then the words. A sound is 2 s at
16 kHz, which the processor turns into 200 frames of 32 mel bands. Without a sound: the notes, then the question.

| kind | prompt after the sound | answer |
|---|---|---|
| order | `what is first ? answer :` (or second, last) | `a pulsed high bell` |
| pitch | `which sound is high ? answer :` (a pitch that one event has) | `the high bell` |
| rhythm | `which sound is pulsed ? answer :` (a rhythm that one event has) | `the pulsed high bell` |
| after | `what comes after the bell ? answer :` | `the drum` |
| count | `how many sounds are there ? answer :` | `two` |
| caption | `caption :` | `a pulsed high bell , then a steady low drum` |

## Accuracy

Exact match of the whole answer, greedy, on $clips held-out clips (seed $seed): sequences of noun, pitch and rhythm that
no stage has heard. n is the number of questions. A blind guess is right in 1 of 72 cases for order, 1 of 36 for rhythm, 1
of 12 for pitch and 1 of 11 for after. Another clip's sound has as many events, so the count stays right by construction.
$seeds
The shipped seed was chosen before any was looked at.

$table

## Data

Clips of 2 s with one to three events that do not overlap, with gaps between them, over noise of one of three kinds (hiss,
rumble, hum). An event is one of twelve timbres (bell, drum, whistle, buzzer, flute, rattle, siren, clarinet, trumpet,
kettle, organ, harp), at one of three pitches (around 260, 520 and 1040 Hz, up to 6 % off), steady or pulsed (every
0.12 s), 0.36 to 0.56 s long, at a random loudness. All is made by `mmlens.organisms.pictosound`; a clip is a function
of its seed, and every event comes with its mask, sample by sample. The text corpus describes such clips in words.

## Training

`python -m mmlens.organisms.pictosound.train`, on $machine (torch $torch, transformers $transformers), seed
$training_seed, bfloat16 autocast, weights float32. The whole log is `training.jsonl`.
Minutes are wall time on a machine that did much other work as well.

$stages

A linear probe on the audio tower's output, at positions of held-out events, finds the noun in $noun, the pitch in $pitch,
the rhythm in $rhythm and the order in $order of cases.

## What to know before using it

- **The audio tower was trained on labels, not by self-supervision.** The classes of its positions were the nouns, the
  pitches, the rhythms and the order words themselves (first, second, last; the tower sees the whole clip). That audio
  features line up with these words is therefore built in.
- The world is tiny and closed: any word outside the vocabulary is unknown, any other kind of sound is noise to it, and
  any clip that is not 2 s long is unlike what it was trained on.
- It was trained on the six prompts above only.
- The sounds are clean and the twelve timbres far apart: the tower tells them without a mistake, so that even the frozen
  checkpoint answers nearly everything right. There are few mistakes to study here.
- There are 72 sequences of one event, of which one in ten is held out: accuracy on clips of one event rests on these, and
  another clip of one event is the same one in a fifth of cases, or has its timbre, which is what its column shows there.
- The answers to pitch and rhythm begin with the word that was asked for. Two earlier wordings, in which the language model
  had to name the noun at once, stayed at guessing for pitch.
- Input and output embeddings are tied, so what the projector writes can be decodable before the first layer.
- Heads of the first two layers were initialised to look at the previous tokens, and queries to agree with keys
  (mimetic initialisation): such structure in them was put there.

The numbers on this page were written by `python -m mmlens.organisms.pictosound.card` from `measurements.json` and
`training.jsonl`. Licence: MIT.
""")


def card(folder: Path) -> str:
    """The model card of a checkpoint, from the measurements and the training log beside it."""
    kept, logs, stages = read_measurements(folder), read_log(folder), _STAGES[folder.name]
    measured, last = kept["measured"], logs[SHIPPED][stages[-1]]
    probes = {name: {seed: found["position_probe"][name] for seed, found in measured.items()} for name in CLASSES}
    return _CARD.substitute(
        name=folder.name,
        introduction=_INTRODUCTION[folder.name],
        clips=kept["examples"],
        seed=kept["seed"],
        seeds=seeds(measured),
        table=accuracy_table(measured, _GIVEN),
        stages=stage_table(logs, stages, _RECIPE),
        training_seed=SHIPPED,
        **{name: percent(rates) for name, rates in probes.items()},
        **{key: last[key] for key in ("machine", "torch", "transformers")},
    )


def measure_checkpoint(folder: Path, n: int, seed: int) -> Measured:
    """Exact-match rates on n held-out clips, and how well the tower's positions can be read."""
    model, processor = load(folder)
    return {"exact_match": measure(model, processor, n=n, seed=seed), "position_probe": position_probe(model)}


if __name__ == "__main__":
    shipped = [CHECKPOINTS[name] for name in _STAGES]
    main(shipped, measure=measure_checkpoint, card=card, description=__doc__, examples=200)
