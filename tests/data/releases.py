"""Benchmarks in miniature: made-up rows in the schema of each source, written as the source keeps them."""

import json
from io import BytesIO

import soundfile
from datasets import Audio, ClassLabel, Dataset, Features, Image, List, Value
from support import clip, picture, sound

TEXT, INT = Value("string"), Value("int64")
CELL = {"bytes": Value("binary"), "path": TEXT}
PEOPLE = [("red", "yes")] * 6 + [("dark red", "maybe"), ("maroon", "no"), ("reddish", "yes"), ("red", "no")]


def hub(folder, file, columns, features, audio=None):
    """Write rows as the hub keeps them: Parquet with the features of `datasets`."""
    rows = Dataset.from_dict(columns, features=Features(features))
    if audio is not None:
        rows = rows.cast_column(audio, Audio(sampling_rate=16_000))
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(folder / file)


def flac(seed, seconds=0.5):
    file = BytesIO()
    soundfile.write(file, sound(seed, seconds)[0], 16_000, format="FLAC")
    return file.getvalue()


def save(folder, name, pixels):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    pixels.save(folder / name)


def coco(folder):
    images = [
        {
            "filepath": "val2014",
            "filename": f"COCO_val2014_{number:012}.jpg",
            "imgid": number,
            "sentids": [0, 1],
            "split": split,
            "cocoid": number,
            "sentences": [{"tokens": [], "raw": f"A {word} {number}.", "imgid": number, "sentid": 0} for word in "ab"],
        }
        for number, split in ((1, "train"), (2, "test"), (3, "test"))
    ]
    for image in images:
        save(folder, f"val2014/{image['filename']}", picture(image["cocoid"]))
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))


def coco_table(folder):
    rows = [
        {
            "filepath": "val2014",
            "sentids": [0],
            "filename": f"COCO_val2014_{number:012}.jpg",
            "imgid": number,
            "split": "test",
        }
        | {"sentences": [f"A a {number}.", f"A b {number}."], "cocoid": number, "url": "http://x"}
        for number in (2, 3)
    ]
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for row in rows:
        save(folder, row["filename"], picture(row["cocoid"]))


def textvqa(folder):
    columns = dict(
        image_id=["i0", "i1"],
        question_id=[34602, 34603],
        question=["what is the brand of this camera?", "what year?"],
        question_tokens=[["what"], ["what"]],
        image=[picture(0), picture(1)],
        image_width=[50, 50],
        flickr_original_url=["http://x", "http://x"],
        answers=[["dakota"] * 9 + ["nous"], ["2011"] * 10],
        ocr_tokens=[["DAKOTA"], []],
        set_name=["val", "val"],
    )
    strings = dict.fromkeys(("image_id", "question", "flickr_original_url", "set_name"), TEXT)
    lists = {name: List(TEXT) for name in ("question_tokens", "answers", "ocr_tokens")}
    features = {**strings, **lists, "question_id": Value("int32"), "image": Image(), "image_width": INT}
    hub(folder, "data/validation-00000-of-00003.parquet", columns, features)


def vqav2(folder):
    answers = [{"answer": word, "answer_confidence": sure, "answer_id": i + 1} for i, (word, sure) in enumerate(PEOPLE)]
    columns = dict(
        question_type=["what color"] * 2,
        multiple_choice_answer=["red"] * 2,
        answers=[answers] * 2,
        image_id=[262148, 262149],
        answer_type=["other"] * 2,
        question_id=[262148000, 262149000],
        question=["What color is the car?", "What color is it?"],
        image=[picture(0), picture(1)],
    )
    features = dict.fromkeys(("question_type", "multiple_choice_answer", "answer_type", "question"), TEXT)
    people = List({"answer": TEXT, "answer_confidence": TEXT, "answer_id": INT})
    features |= dict(image_id=INT, question_id=INT, image=Image(), answers=people)
    hub(folder, "data/validation-00000-of-00068.parquet", {k: v[:1] for k, v in columns.items()}, features)
    hub(folder, "data/validation-00001-of-00068.parquet", {k: v[1:] for k, v in columns.items()}, features)
    hub(folder, "data/test-00000-of-00001.parquet", columns | {"answers": [None, None]}, features)


def docvqa(folder):
    columns = dict(
        questionId=["49153", "24580"],
        question=["What is the 'actual value' per 1000?", "What is the name of the university?"],
        question_types=[["table"], None],
        image=[picture(0), picture(1)],
        docId=[14465, 14466],
        ucsf_document_id=["pybv0228", "nkbl0226"],
        ucsf_document_page_no=["81", "1"],
        answers=[["0.28"], ["university of california", "UC"]],
        data_split=["val", "val"],
    )
    strings = dict.fromkeys(("questionId", "question", "ucsf_document_id", "ucsf_document_page_no", "data_split"), TEXT)
    features = {**strings, "question_types": List(TEXT), "answers": List(TEXT), "docId": INT, "image": Image()}
    hub(folder, "DocVQA/validation-00000-of-00001.parquet", columns, features)
    hub(folder, "InfographicVQA/validation-00000-of-00001.parquet", {"other": ["x"]}, {"other": TEXT})


def pmc_vqa(folder):
    head = "Figure_path,Question,Answer,Choice A,Choice B,Choice C,Choice D,Answer_label\n"
    lines = [
        f"PMC1_F{n}.jpg, What is it? ,Focal uptake, A:Diffuse uptake, B:Focal uptake , C:None, D:NA,B\n" for n in (0, 1)
    ]
    (folder / "test.csv").write_text(head + "".join(lines))
    (folder / "test_clean.csv").write_text(head + lines[0])
    (folder / "train.csv").write_text(head + lines[0])
    for n in (0, 1):
        save(folder, f"images/PMC1_F{n}.jpg", picture(n))


def pmc_vqa_2(folder):
    head = "index,Figure_path,Caption,Question,Choice A,Choice B,Choice C,Choice D,Answer,split\n"
    (folder / "test_2.csv").write_text(head + "0,PMC1_F0.jpg,c,What is it?,Diffuse uptake,Focal uptake,None,NA,B,test\n")
    save(folder, "figures/PMC1_F0.jpg", picture(0))


def lingoqa(folder):
    frames = [[f"images/val/s{question}/{frame}.jpg" for frame in range(3)] for question in range(2)]
    rows = [
        {"question_id": f"q{question}", "segment_id": f"s{question}", "images": frames[question]}
        | {"question": f"What is ahead {question}?", "answer": answer}
        for answer in ("A car.", "One car.")
        for question in range(2)
    ]
    Dataset.from_list(rows).to_parquet(folder / "val.parquet")
    for question in range(2):
        for frame, name in enumerate(frames[question]):
            save(folder, name, picture(10 * question + frame))


def rsvqa(folder):
    gone = {"id": 2, "active": False}
    questions = [
        {"id": 0, "img_id": 0, "people_id": 0, "type": "count", "question": "How many roads?", "answers_ids": [0]},
        {"id": 1, "img_id": 7, "people_id": 0, "type": "presence", "question": "Is there water?", "answers_ids": [1]},
    ]
    answers = [{"id": n, "question_id": n, "people_id": 0, "answer": answer} for n, answer in enumerate(["3", "no"])]
    for what, records in (("questions", questions), ("answers", answers)):
        active = [*(record | {"active": True} for record in records), gone]
        (folder / f"USGS_split_test_{what}.json").write_text(json.dumps({what: active}))
    for number in (0, 7):
        save(folder, f"Data/{number}.tif", picture(number))


def mmlu(folder):
    columns = dict(
        question=["What is 2 + 2?", " Which is a noble gas?"],
        subject=["abstract_algebra", "high_school_chemistry"],
        choices=[["3", "4", "5", "6"], ["iron", "gold", "neon", "lead"]],
        answer=[1, 2],
    )
    features = dict(question=TEXT, subject=TEXT, choices=List(TEXT), answer=ClassLabel(names=list("ABCD")))
    hub(folder, "all/test-00000-of-00001.parquet", columns, features)
    hub(folder, "all/dev-00000-of-00001.parquet", columns, features)
    hub(folder, "anatomy/test-00000-of-00001.parquet", columns, features)


def msvd(folder):
    rows = [
        {"id": 30933 + n, "video_id": 1301 + n, "question": f"what is a man doing {n}?", "answer": "ride"} for n in range(2)
    ]
    (folder / "test_qa.json").write_text(json.dumps(rows))
    (folder / "youtube_mapping.txt").write_text("-4wsuPCjDBc_5_15 vid1301\n0 bSz70pYAP0_5_15 vid1302\n")
    for n, name in enumerate(("-4wsuPCjDBc_5_15", "vid1302")):
        (folder / "YouTubeClips").mkdir(exist_ok=True)
        first, *rest = clip(n, frames=5)
        file = folder / "YouTubeClips" / f"{name}.gif"
        first.save(file, save_all=True, append_images=rest, duration=500)


def librispeech(folder):
    columns = dict(
        file=["6930-75918-0000.flac", "6930-75918-0001.flac"],
        audio=[{"bytes": flac(n), "path": f"6930-75918-000{n}.flac"} for n in range(2)],
        text=["CONCORD RETURNED TO ITS PLACE", "HE HOPED"],
        speaker_id=[6930, 6930],
        chapter_id=[75918, 75918],
        id=["6930-75918-0000", "6930-75918-0001"],
    )
    features = dict(file=TEXT, audio=CELL, text=TEXT, speaker_id=INT, chapter_id=INT, id=TEXT)
    hub(folder, "clean/test/0000.parquet", columns, features, audio="audio")
    hub(folder, "other/test/0000.parquet", columns, features, audio="audio")


def vocalsound(folder):
    columns = dict(
        audio=[{"bytes": flac(n), "path": f"f000{n}_0_cough.wav"} for n in range(2)],
        answer=["Throat clearing", "Cough"],
        spk_id=["f0000", "f0001"],
        age_group=[1, 2],
    )
    features = dict(audio=CELL, answer=TEXT, spk_id=TEXT, age_group=INT)
    hub(folder, "data/test-00000-of-00001.parquet", columns, features, audio="audio")


def vocalsound_files(folder):
    (folder / "audio_16k").mkdir()
    (folder / "meta").mkdir()
    (folder / "meta" / "all_meta.csv").write_text("spk,gender\nf0000,female\n")
    for n, label in enumerate(("throatclearing", "cough")):
        (folder / "audio_16k" / f"f000{n}_0_{label}.wav").write_bytes(flac(n))  # soundfile reads what a file holds


def pope(folder):
    columns = dict(
        id=["0", "1"],
        question_id=["1", "2"],
        question=["Is there a snowboard in the image?", "Is there a dog in the image?"],
        answer=["yes", "no"],
        image_source=["COCO_val2014_000000310196"] * 2,
        image=[picture(0), picture(1)],
        category=["adversarial", "popular"],
    )
    strings = dict.fromkeys(("id", "question_id", "question", "answer", "image_source", "category"), TEXT)
    hub(folder, "data/test-00000-of-00003.parquet", columns, {**strings, "image": Image()})
