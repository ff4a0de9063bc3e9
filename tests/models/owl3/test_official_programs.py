"""The authors' published programs run: their import lines and paths are all that was changed."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from samples import tiny_model
from transformers import TextIteratorStreamer

import longview
from longview.engine import Engine
from longview.models import owl3

PROGRAMS = Path(__file__).parents[2] / "official"


@pytest.fixture(scope="module", params=owl3.Config.variants)
def checkpoint(request, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model, processor = tiny_model(owl3, request.param, tokenizer)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "car.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for shade in range(35):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 7 * shade, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def run(name: str, checkpoint: Path, video: Path | None = None) -> dict:
    program = (PROGRAMS / name).read_text().replace("MODEL_PATH", str(checkpoint)).replace("VIDEO_PATH", str(video))
    if not torch.cuda.is_available():  # this machine's only device takes the place of the card's
        program = program.replace(".cuda()", ".cpu()").replace("'cuda'", "'cpu'").replace('"cuda"', '"cpu"')
    names: dict = {}
    with pytest.warns(UserWarning, match="trust_remote_code is ignored"):
        exec(compile(program, name, "exec"), names)
    return names


def test_the_program_for_pictures_prints_an_answer(checkpoint, capsys):
    names = run("owl3_image.py", checkpoint)
    assert [type(text) for text in names["g"]] == [str]
    assert names["model"].dtype == torch.bfloat16
    assert len(names["inputs"]["pixel_values"]) == 5, "the card's square picture is cut 2 × 2, with a global view"
    assert str(names["g"]) in capsys.readouterr().out


def test_the_program_for_videos_prints_an_answer(checkpoint, video, capsys):
    names = run("owl3_video.py", checkpoint, video)
    assert "num frames: 4\n" in capsys.readouterr().out
    shades = names["video_frames"][0]
    assert [int(np.asarray(f).mean() / 7 + 0.5) for f in shades] == pytest.approx([0, 10, 20, 30], abs=1)
    assert [type(text) for text in names["g"]] == [str]


def test_a_streamer_receives_the_text_that_generate_returns(checkpoint):
    model = owl3.Model.from_pretrained(checkpoint).eval()
    processor = owl3.Processor.from_pretrained(checkpoint)
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": ""}]
    inputs = processor(messages)
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    arguments = {**inputs, "tokenizer": processor.tokenizer, "max_new_tokens": 12}
    (text,) = model.generate(**arguments, decode_text=True, streamer=streamer)
    assert "".join(streamer).strip() == text


def test_generation_is_greedy_whatever_the_folder_suggests(checkpoint):
    (checkpoint / "generation_config.json").write_text('{"do_sample": true, "temperature": 5.0, "top_k": 0}')
    model = owl3.Model.from_pretrained(checkpoint).eval()
    inputs = owl3.Processor.from_pretrained(checkpoint)([{"role": "user", "content": "Hello"}])
    answers = {tuple(model.generate(**inputs, max_new_tokens=8)[0].tolist()) for _ in range(4)}
    assert len(answers) == 1


def test_an_exclamation_mark_in_the_prompt_is_seen(tokenizer):
    """Upstream pads with the id of "!" and so hides each of them from attention."""
    model, processor = tiny_model(owl3, "241101", tokenizer)
    processor._placeholder  # noqa: B018 (the tokenizer is the byte one, in which "!" has id 0)
    assert processor.tokenizer.convert_tokens_to_ids("!") == 0
    ids = processor([{"role": "user", "content": "Stop! Now!"}, {"role": "assistant", "content": ""}])["input_ids"]
    first = model.generate(ids, max_new_tokens=1)[0, 0]
    with torch.no_grad():
        assert first == model(input_ids=ids).logits[0, -1].argmax()
        hidden = model(input_ids=ids, attention_mask=(ids != 0).long()).logits[0, -1]
        assert not torch.allclose(hidden, model(input_ids=ids).logits[0, -1], atol=1e-2)


def test_parts_kept_on_disk_give_the_same_answers(checkpoint, tmp_path):
    whole = owl3.Model.from_pretrained(checkpoint).eval()
    places = {"vision_model": "cpu", "vision2text_model": "cpu", "language_model.lm_head": "cpu"}
    places |= {f"language_model.model.{part}": "cpu" for part in ("embed_tokens", "norm", "rotary_emb")}
    places |= {f"language_model.model.layers.{i}": "disk" if i % 2 == 0 else "cpu" for i in range(4)}
    split = owl3.Model.from_pretrained(checkpoint, device_map=places, offload_folder=tmp_path).eval()
    processor = owl3.Processor.from_pretrained(checkpoint)
    from PIL import Image

    messages = [{"role": "user", "content": "<|image|>What?"}, {"role": "assistant", "content": ""}]
    inputs = processor(messages, images=[Image.new("RGB", (40, 30), "red")])
    assert split.generate(**inputs, max_new_tokens=5).tolist() == whole.generate(**inputs, max_new_tokens=5).tolist()
    ours = [Engine(model, processor, "split") for model in (split, whole)]
    picture = longview.image(Image.new("RGB", (40, 30), "red"))
    split_answer, answer = (engine.answer([longview.ask("What?", picture)], max_tokens=5) for engine in ours)
    assert split_answer.tokens == answer.tokens
