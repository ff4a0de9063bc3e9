"""The authors' published program runs: its import lines and paths are all that was changed."""

from __future__ import annotations

import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from ovis2_golden import TINY, synthetic
from transformers import TextIteratorStreamer

from longview.models.ovis2 import Model

PROGRAM = (Path(__file__).parents[2] / "official" / "ovis2.py").read_text()
SUFFIX = "conclude with 'the answer is' followed by the final solution."


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    synthetic(120, 50, 3).save(folder / "picture.png")
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for shade in range(35):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 7 * shade, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return folder


def run(variant: str, files: Path) -> dict:
    """The program with one of its commented variants uncommented."""
    blocks = re.split(r"(?m)^(?=## |# format conversation)", PROGRAM)
    chosen = [re.sub(r"(?m)^# ", "", block) if block.startswith(f"## {variant}") else block for block in blocks]
    assert (chosen == blocks) == (variant == "as it is")
    program = "".join(chosen)
    program = program.replace("MODEL_PATH", str(TINY)).replace("IMAGE_PATH", str(files / "picture.png"))
    program = program.replace("VIDEO_PATH", str(files / "clip.mp4")).replace("max_new_tokens=1024", "max_new_tokens=24")
    if not torch.cuda.is_available():  # this machine's only device takes the place of the authors'
        program = program.replace(".cuda()", ".cpu()")
    names: dict = {}
    with pytest.warns(UserWarning, match="trust_remote_code is ignored"):
        exec(compile(program, variant, "exec"), names)
    return names


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
@pytest.mark.parametrize(
    ("variant", "pictures", "crops", "question"),
    [
        ("as it is", 1, 4, "<image>\nDescribe the image."),
        ("cot-style input", 1, 4, SUFFIX),
        ("multiple-images input", 3, 12, "Image 1: <image>\nImage 2: <image>\nImage 3: <image>\nDescribe each image."),
        ("video input", 12, 12, "\n".join(["<image>"] * 12) + "\nDescribe the video."),
        ("text-only input", 0, 0, "Hello"),
    ],
)
def test_the_program_prints_an_answer(files, capsys, variant, pictures, crops, question):
    names = run(variant, files)
    assert names["model"].dtype == torch.bfloat16
    assert question in names["prompt"]
    assert names["prompt"].count("<image>") == pictures
    assert sum(map(len, filter(lambda p: p is not None, names["pixel_values"]))) == crops
    assert f"Output:\n{names['output']}" in capsys.readouterr().out
    assert 0 < len(names["output_ids"]) <= 24
    if pictures == 12:
        shades = [round(np.asarray(frame).mean() / 7) for frame in names["images"]]
        assert shades == pytest.approx([1, 4, 7, 10, 13, 16, 18, 21, 24, 27, 30, 33], abs=1)


@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty`")
def test_a_setting_given_as_none_means_none_whatever_the_folder_suggests(files):
    model = Model.from_pretrained(TINY).eval()
    _, ids, pixels = model.preprocess_inputs("<image>\nDescribe the image.", [synthetic(40, 30, 1)])
    arguments = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None], "pixel_values": [pixels]}
    arguments |= {"max_new_tokens": 12, "do_sample": False, "eos_token_id": []}
    greedy = model.generate(**arguments).tolist()
    model.generation_config.repetition_penalty = 0.01  # likes what it said already
    assert model.generate(**arguments).tolist() != greedy, "what the call leaves open is the folder's to say"
    assert model.generate(**arguments, repetition_penalty=None, temperature=None, top_p=None).tolist() == greedy


def test_a_streamer_receives_the_text_that_generate_returns():
    model = Model.from_pretrained(TINY).eval()
    _, ids, pixels = model.preprocess_inputs("<image>\nDescribe the image.", [synthetic(40, 30, 1)])
    tokenizer = model.get_text_tokenizer()
    streamer = TextIteratorStreamer(tokenizer, skip_special_tokens=True)
    (tokens,) = model.generate(ids[None], pixel_values=pixels, max_new_tokens=12, streamer=streamer)
    assert "".join(streamer) == tokenizer.decode(tokens, skip_special_tokens=True)
