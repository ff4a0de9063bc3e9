"""How conversations are laid out for training: captions without a template, and which pictures are cut into crops."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import av
import pytest
from runs import data_stage
from samples import noise, tiny_model

from longview.errors import RecipeError
from longview.media import open_media
from longview.messages import Message, image, video
from longview.models.base import SampleFormat
from longview.models.families import families
from longview.train.data.rows import Example
from longview.train.data.sample_format import open_shown, sample_format_of
from longview.train.data.settings import DatasetSettings, DataSettings
from longview.train.loop import accumulate_gradients
from longview.train.objectives.supervised import Supervised
from longview.train.recipe import ModelSettings, Recipe, Stage, check

CAPTION = "A cat <|im_end|> on a mat."
FAMILIES = ("mgm", "ovis2", "owl3")


@pytest.fixture(scope="module")
def opened(tokenizer):
    """A tiny model and its processor, by family."""
    variants = {name: next(iter(families()[name].Config.variants)) for name in FAMILIES}
    return {name: tiny_model(families()[name], variants[name], tokenizer) for name in FAMILIES}


def prepared(processor, *parts, sample_format, answer=CAPTION):
    user = Message.of("user", *parts)
    media = open_media(user.media, default=processor.default_media)
    return processor.prepare([user, Message.of("assistant", answer)], media, train=True, sample_format=sample_format)


def test_a_caption_is_learned_right_behind_its_picture_without_a_template(tiny):
    """All that is learned is the caption; before it there is nothing but what stands for the picture."""
    _, processor = tiny
    inputs = prepared(processor, image(noise(1)), sample_format=SampleFormat(plain=True))
    ids, labels = (inputs.text_inputs[name][0] for name in ("input_ids", "labels"))
    learned = labels != -100
    begin = int(learned.nonzero()[0])
    assert learned[begin:].all()
    end = "\n" if type(processor).__name__ == "MGMProcessor" else ""  # its template, plain, ends in one
    assert processor.tokenizer.decode(ids[begin:]) == CAPTION + end
    special = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert special not in ids.tolist()
    before = processor.tokenizer.decode(ids[:begin][ids[:begin] >= 0])
    assert not any(word in before for word in ("user", "assistant", "system", "USER"))
    assert inputs.num_pictures > 0


def test_captions_of_a_padded_and_a_packed_step_are_learned_alike(opened, tmp_path):
    noise(3).save(tmp_path / "a.png")
    rows = [{"image_path": "a.png", "caption": "A" * n} for n in (3, 9, 5, 1)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for model, processor in opened.values():
        losses = []
        for sample_format in ({"micro_batch": 4}, {"pack": 400}):
            stage = data_stage(batch=4, datasets=[DatasetSettings(str(tmp_path / "rows.jsonl"))], **sample_format)
            objective = attached(model, processor, stage, tmp_path)
            losses.append(accumulate_gradients(objective, 0)[0])
            model.zero_grad()
        assert losses[0] == pytest.approx(losses[1], abs=1e-4)
        assert not (tmp_path / "quarantine.jsonl").exists()


def attached(model, processor, stage: Stage, folder: Path, seed: int = 0) -> Supervised:
    recipe = Recipe(ModelSettings("x"), [stage], seed=seed)
    check(recipe)
    objective = Supervised(recipe, 0)
    objective.check_model(model, processor)
    objective.attach(model, processor, folder)
    return objective


# ── crops ────────────────────────────────────────────────────────────────────────────────────────────────────────────

POLICY = {"text": 1.0, "single": 0.2, "several": 0.0, "video": 0.0}


@pytest.mark.parametrize(
    ("family", "sample_format", "pictures"),
    [
        ("owl3", SampleFormat(), 5), ("owl3", SampleFormat(cut=False), 1), ("owl3", SampleFormat(cut=True), 5),
        ("ovis2", SampleFormat(), 5), ("ovis2", SampleFormat(cut=False), 1),
        ("ovis2", SampleFormat(max_partition=1), 1),
        ("ovis2", SampleFormat(max_partition=4), 5), ("ovis2", SampleFormat(cut=True, max_partition=4), 5),
    ],
)  # fmt: skip
def test_a_layout_says_how_a_picture_is_cut(opened, family, sample_format, pictures):
    _, processor = opened[family]
    assert prepared(processor, image(noise(1, 56, 56)), sample_format=sample_format).num_pictures == pictures


@pytest.fixture
def shown(tmp_path):
    """Ten rows of each kind: one picture, one full of text, two; and of none."""
    noise(1, 40, 30).save(tmp_path / "a.png")
    kinds = {"single": ["a.png"], "text": ["a.png"], "several": ["a.png", "a.png"], "none": []}
    for name, images in kinds.items():
        row = {"images": images, "query": "What?", "response": name}
        (tmp_path / f"{name}.jsonl").write_text("\n".join([json.dumps(row)] * 10))
    return tmp_path


def cut_of(objective: Supervised, position: int) -> tuple[str, bool]:
    data, number = objective.mixture.at(position)
    return data[number].messages[-1].text, objective.sample(position).inputs.num_pictures > len(data[number].media)


def test_the_published_policy_cuts_pictures_by_kind_and_always_the_same_ones(opened, shown):
    model, processor = opened["owl3"]
    names = ("single", "text", "several", "none")
    datasets = [DatasetSettings(str(shown / f"{name}.jsonl"), text_rich=name == "text") for name in names]
    stage = data_stage(batch=40, datasets=datasets, crop=POLICY | {"single": 0.5})
    objective = attached(model, processor, stage, shown)
    found = [cut_of(objective, position) for position in range(40)]
    cut = Counter(kind for kind, was_cut in found if was_cut)
    assert cut["text"] == 10
    assert 1 <= cut["single"] <= 9
    assert cut.keys() == {"text", "single"}
    again = attached(model, processor, stage, shown)
    backwards = [cut_of(again, position) for position in reversed(range(40))]
    assert backwards[::-1] == found, "whoever asks, and in whichever order"
    other = attached(model, processor, stage, shown, seed=1)
    assert [cut_of(other, position) for position in range(40)] != found


def test_a_rows_own_number_of_crops_goes_before_the_stages(opened):
    example = Example((Message.of("user", image(noise(1))), Message.of("assistant", "x")))
    stage = DataSettings([], max_partition={"single": 9, "several": 1}, crop={"single": 0.5})
    assert sample_format_of(example, stage, 0.4) == SampleFormat(cut=True, max_partition=9)
    assert sample_format_of(dataclasses.replace(example, max_partition=4), stage, 0.5) == SampleFormat(
        cut=False, max_partition=4
    )
    assert sample_format_of(dataclasses.replace(example, text_rich=True), stage, 0.0) == SampleFormat()


@pytest.mark.parametrize(
    ("family", "settings", "row", "message"),
    [
        ("mgm", {"crop": POLICY}, {}, r"stages\.x\.data\.crop means nothing to this model"),
        ("owl3", {"max_partition": {"single": 2}}, {}, r"stages\.x\.data\.max_partition means nothing to this model"),
        ("owl3", {}, {"max_partition": 2}, r"rows\.jsonl says max_partition, and this model cuts no picture"),
    ],
)
def test_crops_that_a_family_cannot_make_are_refused(opened, shown, family, settings, row, message):
    rows = {"image": "a.png", "query": "What?", "response": "x"} | row
    (shown / "rows.jsonl").write_text(json.dumps(rows))
    stage = data_stage(datasets=[DatasetSettings(str(shown / "rows.jsonl"))], **settings)
    with pytest.raises(RecipeError, match=message):
        attached(*opened[family], stage, shown)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": {"singel": 1.0}}, r"stages\.x\.data\.crop holds 'singel'; the kinds of samples are text, single"),
        ({"crop": {"single": 1.5}}, r"stages\.x\.data\.crop\.single is 1\.5"),
        ({"max_partition": {"single": 0}}, r"stages\.x\.data\.max_partition\.single is 0"),
        ({"fps": -1.0}, r"stages\.x\.data\.fps is -1"),
        ({"template": "plain", "objective": "preference"}, "template 'plain' means nothing to objective 'preference'"),
        ({"objective": "answers"}, "objective is 'answers'; of a stage with data it is one of supervised, preference"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(change, message):
    with pytest.raises(RecipeError, match=message):
        check(Recipe(ModelSettings("x"), [data_stage(datasets=[DatasetSettings("x.jsonl")], **change)]))


# ── frames ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """Four seconds, eight frames a second."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(32):
            container.mux(stream.encode(av.VideoFrame.from_image(noise(number, 64, 48))))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("policy", "expected"), [({"frames": 3}, 3), ({"fps": 2.0}, 8), ({"fps": 2.0, "frames": 3}, 3), ({"fps": 0.5}, 2)]
)
def test_a_stage_says_how_many_frames_of_a_film_are_seen(opened, film, policy, expected):
    listed = video([noise(n) for n in range(4)])
    parts = [listed, video(str(film)), image(noise(9))]
    media = open_shown(parts, policy.get("frames", 0), policy.get("fps", 0.0), opened["owl3"][1].default_media)
    kept = min(4, policy.get("frames", 4))  # a list has no times, so its frames are only counted
    assert [len(medium.frames) for medium in media] == [kept, expected, 1]
