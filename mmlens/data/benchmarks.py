"""Published benchmarks: where each comes from, on what terms, and how its rows become examples.

Nothing is downloaded or stored here. The columns are those of the sources as public code and cards name them (2023 to
2026): no row of the originals was at hand, so each mapping is tested on made-up rows in that schema, and a row that lacks
a column is refused. Prompts are a paper's own where its release gives one; `note` says where ours differ.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from mmlens.data import rows
from mmlens.data.benchmark import Benchmark

if TYPE_CHECKING:
    import pandas

SHORT = "{question}\nAnswer the question using a single word or phrase."
CHOICE = "{question}\n{options}\nAnswer with the letter of the right option."

_VQAV2 = Benchmark(
    name="vqav2",
    source="lmms-lab/VQAv2",
    split="validation",
    columns=("question_id", "question", "image", "answers"),
    read=rows.vqav2,
    prompt=SHORT,
    metric="vqa_score",
    licence="questions and answers CC BY 4.0; COCO pictures under Flickr's terms",
    note="all ten answers and the official soft score; Huo et al. 2024: vqav2-sure",
)

_ALL = (
    Benchmark(
        name="coco-captions",
        source="https://cocodataset.org and yerevann/coco-karpathy",
        columns=("filename", "sentences"),
        read=rows.coco,
        prompt="Describe the image in one sentence.",
        metric="bleu",
        licence="captions CC BY 4.0; pictures under Flickr's terms",
        files="filename",
        note="Karpathy's split: dataset_coco.json or the hub's table, beside the pictures. Huang et al. 2024 show four "
        "captions in the prompt: ours shows none",
    ),
    Benchmark(
        name="textvqa",
        source="lmms-lab/textvqa",
        split="validation",
        columns=("question_id", "question", "image", "answers"),
        read=rows.question,
        prompt="{question}",
        metric="contains_any",
        licence="CC BY 4.0; pictures of OpenImages, CC BY 2.0",
        note="Huang et al. 2024: validation, the question alone",
    ),
    _VQAV2,
    replace(
        _VQAV2,
        name="vqav2-sure",
        read=rows.vqav2_sure,
        metric="any_exact",
        note="only answers whose authors were sure, any of which is right, as in Huo et al. 2024",
    ),
    Benchmark(
        name="docvqa",
        source="lmms-lab/DocVQA",
        config="DocVQA",
        split="validation",
        columns=("questionId", "question", "image", "answers"),
        read=rows.question,
        prompt=SHORT,
        metric="anls",
        licence="terms of rrc.cvc.uab.es (the hub's copy says Apache-2.0); UCSF's documents",
        note="the original asks for a registration, the hub's copy does not. Huo et al. 2024 use the same split, and an "
        "ANLS threshold of 1",
    ),
    Benchmark(
        name="pmc-vqa",
        source="RadGenome/PMC-VQA",
        columns=("Figure_path", "Question", "Choice A", "Choice B", "Choice C", "Choice D", "Answer"),
        read=rows.pmc_vqa,
        prompt=CHOICE,
        metric="first_letter",
        licence="CC BY-SA, to be checked at the source; pictures under the terms of their papers in PubMed Central",
        files="Figure_path",
        note="test.csv (letter in Answer_label) or test_2.csv (letter in Answer), beside the unpacked pictures",
    ),
    Benchmark(
        name="lingoqa",
        source="https://github.com/wayveai/LingoQA",
        split="val",
        columns=("question_id", "images", "question", "answer"),
        read=rows.lingoqa,
        prompt="{question}",
        metric=None,
        licence="Wayve's Dataset Licence Agreement for Non-Commercial Use (2024)",
        files="images",
        note="val.parquet beside the unpacked images/. The frames side by side in one picture, as in Huo et al. 2024; all "
        "answers of a question in one example. The judge is wayveai/Lingo-Judge, right from .5 on for any answer",
    ),
    Benchmark(
        name="rsvqa-hr",
        source="https://zenodo.org/records/6344367",
        columns=("question", "file", "answers"),
        read=rows.rsvqa,
        prompt=SHORT,
        metric="exact_match",
        licence="CC BY 4.0; USGS pictures in the public domain",
        files="file",
        note="USGS_split_<split>_questions.json, _answers.json and the unpacked pictures; there are train, val, test "
        "and test_phili",
    ),
    Benchmark(
        name="mmlu",
        source="cais/mmlu",
        config="all",
        columns=("question", "subject", "choices", "answer"),
        read=rows.mmlu,
        prompt="The following are multiple choice questions (with answers) about {subject}.\n\n"
        "{question}\n{options}\nAnswer:",
        metric="first_letter",
        licence="MIT",
        note="no examples in the prompt; Huang et al. 2024 show up to five of the dev split",
    ),
    Benchmark(
        name="msvd-qa",
        source="https://github.com/xudejing/video-question-answering",
        columns=("video_id", "question", "answer", "file"),
        read=rows.msvd,
        prompt=SHORT,
        metric="contains_any",
        licence="no licence stated; videos of YouTube, for research",
        files="file",
        note="<split>_qa.json, and the videos as vid<id>.* or with youtube_mapping.txt; one frame a second, as in Huang et "
        "al. 2024. Reading them takes the extra `video`",
    ),
    Benchmark(
        name="librispeech",
        source="openslr/librispeech_asr",
        config="clean",
        columns=("audio", "text"),
        read=rows.librispeech,
        prompt="Write down the words that are spoken, and nothing else.",
        metric="word_accuracy",
        licence="CC BY 4.0",
        sound="audio",
        note="test-clean, as in Huang et al. 2024, in our words",
    ),
    Benchmark(
        name="vocalsound",
        source="lmms-lab/vocalsound",
        columns=("audio", "answer"),
        read=rows.vocalsound,
        prompt="Which of these sounds is it: laughter, sigh, cough, throat clearing, sneeze or sniff?",
        metric="label_in",
        licence="CC BY-SA 4.0",
        sound="audio",
        note="the hub has val and test; split='all' reads a folder of the release's <speaker>_<n>_<label>.wav, which are "
        "what Huang et al. 2024 use, in our words",
    ),
    Benchmark(
        name="pope",
        source="lmms-lab/POPE",
        columns=("question", "image", "answer"),
        read=rows.pope,
        prompt="{question}\nAnswer yes or no.",
        metric="yes_no",
        licence="MIT; COCO pictures under Flickr's terms",
        note="labels are pope-random, pope-popular and pope-adversarial; precision, recall and F1 by mmlens.metrics.pope",
    ),
)

BENCHMARKS: Mapping[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}


def table() -> "pandas.DataFrame":
    """Return one row per benchmark: its source, config, split, licence or terms, whether it is gated, metric and note."""
    import pandas  # comes with `datasets`; those who only sweep need not wait for it

    shown = ("name", "source", "config", "split", "licence", "gated", "metric", "prompt", "columns", "note")
    return pandas.DataFrame([{name: getattr(one, name) for name in shown} for one in BENCHMARKS.values()]).set_index("name")
