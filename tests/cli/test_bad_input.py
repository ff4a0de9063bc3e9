"""What a user gets wrong: one line on stderr that names it, exit code 2, no traceback."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import av
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(path: Path) -> None:
    """A PNG of a few hundred kilobytes that unpacks to 10 GB."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000_000))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


def half(source: Path, path: Path) -> None:
    whole = source.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def frameless(path: Path) -> None:
    """A video file without a single frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.start_encoding()


MEDIA = {
    "missing.jpg": (lambda folder, media: None, "no file"),
    "empty.jpg": (lambda folder, media: (folder / "empty.jpg").touch(), "empty"),
    "half.jpg": (lambda folder, media: half(media / "red.jpg", folder / "half.jpg"), "cut short|truncated|incomplete"),
    "half.mp4": (lambda folder, media: half(media / "clip.mp4", folder / "half.mp4"), "cut short|truncated|incomplete"),
    "text.jpg": (lambda folder, media: (folder / "text.jpg").write_text("hello, this is text\n"), "text"),
    "none.mp4": (lambda folder, media: frameless(folder / "none.mp4"), "no video in it"),
    "thin.png": (lambda folder, media: Image.new("RGB", (1, 20_000)).save(folder / "thin.png"), "--min-side"),
    "bomb.png": (lambda folder, media: bomb(folder / "bomb.png"), "--max-pixels"),
    "folder": (lambda folder, media: (folder / "folder").mkdir(), "folder"),
}


@pytest.mark.parametrize("name", MEDIA)
def test_a_bad_medium_is_named(refused, random_model, media, tmp_path, name):
    make, expected = MEDIA[name]
    make(tmp_path, media)
    message = refused("ask", "--model", random_model, tmp_path / name, "What is this?")
    assert name in message
    assert any(text in message for text in expected.split("|")), message


def lose_a_shard(folder: Path) -> None:
    next(folder.glob("model-00002-*")).unlink()


def cut_a_shard(folder: Path) -> None:
    shard = next(folder.glob("model-00002-*"))
    shard.write_bytes(shard.read_bytes()[:-100])


def bend_a_tensor(folder: Path) -> None:
    shard = next(folder.glob("model-00002-*"))
    tensors = load_file(shard)
    name = next(name for name in tensors if tensors[name].dim() == 2)
    save_file({**tensors, name: tensors[name][:-1].clone()}, shard, {"format": "pt"})


def pickle_it(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    torch.save({"weight": torch.ones(1)}, folder / "pytorch_model.bin")


def change_family(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", "architectures": ["LlavaForAll"]}))


def lose_the_config(folder: Path) -> None:
    (folder / "config.json").unlink()


CHECKPOINTS = {
    lose_a_shard: "lacks 1 of",
    cut_a_shard: "cut short",
    bend_a_tensor: "wrong shape",
    pickle_it: "pickled",
    change_family: "'llava'",
    lose_the_config: "config.json",
}


@pytest.mark.parametrize("damage", CHECKPOINTS, ids=lambda damage: damage.__name__)
def test_a_bad_checkpoint_is_named(refused, broken_model, damage):
    damage(broken_model)
    message = refused("ask", "--model", broken_model, "Hello")
    assert str(broken_model) in message
    assert CHECKPOINTS[damage] in message


@pytest.mark.parametrize("damage", [lose_a_shard, cut_a_shard, pickle_it, change_family, lose_the_config])
def test_a_bad_checkpoint_has_no_info(refused, broken_model, damage):
    damage(broken_model)
    assert CHECKPOINTS[damage] in refused("info", broken_model)


@pytest.mark.parametrize("name", ["nonsense", "dmeo", "./no/such/folder"])
def test_an_unknown_model_is_named(refused, name):
    assert repr(name) in refused("ask", "--model", name, "Hello")


WRONG_OPTIONS = {
    "--select nonsense": "unknown select 'nonsense'",
    "--frames 0": "frames is 0",
    "--frames many": "--frames",
    "--fps -1": "fps is -1",
    "--start 5 --end 3": "end is 3",
    "--select uniform --fps 2": "fps means nothing",
    "--temperature -1": "temperature is -1",
    "--top-p 0": "top_p is 0",
    "--top-k -1": "top_k is -1",
    "--repetition-penalty 0": "repetition_penalty is 0",
    "--max-tokens 0": "max_tokens is 0",
    "--max-pixels 0": "max_pixels is 0",
    "--device tpu": "unknown device 'tpu'",
    "--dtype int8": "unknown dtype 'int8'",
    "--attn psychic": "psychic",
    "--nonsense": "--nonsense",
    "--model": "--model",
}


@pytest.mark.parametrize("options", WRONG_OPTIONS)
def test_a_wrong_option_is_named(refused, random_model, media, options):
    message = refused("ask", "--model", random_model, media / "clip.mp4", "What?", *options.split())
    assert WRONG_OPTIONS[options] in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_cuda_where_there_is_none_is_refused(refused, random_model):
    assert "no cuda device" in refused("ask", "--model", random_model, "Hello", "--device", "cuda")


def test_flash_attention_where_it_is_missing_is_refused(refused, random_model):
    from transformers.utils import is_flash_attn_2_available

    if is_flash_attn_2_available():
        pytest.skip("it is there")
    assert "flash_attention_2" in refused("ask", "--model", random_model, "Hello", "--attn", "flash_attention_2")


def test_an_unknown_verb_is_refused_with_the_nearest(refused):
    assert "'ask'" in refused("aks")


def test_no_question_is_refused(refused, media):
    assert "QUESTION" in refused("ask")
    assert "add a question" in refused("ask", media / "red.jpg")
    assert "add a question" in refused("ask", "https://example.com/photo.jpg")
    assert "empty" in refused("ask", "")
    assert "empty" in refused("ask", "-", stdin="\n")


def test_a_question_that_is_not_text_is_refused(refused):
    assert "UTF-8" in refused("ask", "caf\udce9")


def test_more_frames_than_the_limit_name_the_option_that_raises_it(refused, random_model, media):
    message = refused("ask", "--model", random_model, media / "clip.mp4", "What?", "--frames", 9, "--max-frames", 7)
    assert "--max-frames" in message
