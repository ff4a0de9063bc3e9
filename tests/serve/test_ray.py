"""Replicas on Ray Serve: the same routes, a film's replica, and what is left when one is killed."""

from __future__ import annotations

import base64
import importlib.util
import io
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import openai
import pytest
from PIL import Image, ImageDraw
from serving import ROOT, Server, clip, eventually, running, shapes

from longview.errors import RequestError
from longview.serve.backend import Job
from longview.serve.ray import Cluster, session_of
from longview.serve.settings import ServerOptions

on_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (the extra `ray`)")
TOKEN = {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
"""Of the cluster, so that another command may use it."""
LONG = {"max_tokens": 300, "extra_body": {"min_tokens": 300}, "stream": True}


@pytest.fixture(scope="module")
def cluster():
    """A server whose model has two replicas."""
    with running("--replicas", "2", environment=TOKEN) as started:
        yield started


def descendants(pid: int) -> dict[int, str]:
    """Command lines of the processes below one."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    found, level = {}, {pid}
    while level:
        children = {int(row[0]): row[2] for row in rows if int(row[1]) in level}
        found |= children
        level = set(children)
    return found


def replicas(server: Server) -> list[int]:
    return [pid for pid, line in descendants(server.process.pid).items() if line.startswith("ray::ServeReplica")]


def num_replicas(server: Server) -> int:
    """How many are ready, as the server says."""
    with urllib.request.urlopen(f"{server.address}/metrics", timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    return int(sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("longview:num_replicas{")))


def picture(number: int) -> list[dict]:
    """A question about a picture of its own."""
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).rectangle((4 + number, 8, 40, 40), fill=(0, 0, 255))
    file = io.BytesIO()
    image.save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    part = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [part, {"type": "text", "text": "What is there?"}]}]


def ask(server: Server, messages: list[dict], model: str = "demo", **more):
    return server.client().chat.completions.create(model=model, messages=messages, **{"max_tokens": 8, **more})


@on_ray
@pytest.mark.slow
def test_every_route_answers_as_it_does_without(cluster, server):
    for messages in (shapes(), clip()):
        ours, theirs = ask(cluster, messages), ask(server, messages)
        assert ours.choices[0].message.content == theirs.choices[0].message.content
        assert ours.usage.prompt_tokens == theirs.usage.prompt_tokens
    assert "".join(chunk.choices[0].delta.content or "" for chunk in ask(cluster, shapes(), stream=True)) == "blue"
    client = cluster.client()
    question = {"type": "predicate", "instructions": "Is there a blue star?"}
    given = [
        {
            "role": "user",
            "content": [{"type": "input_image", "image_url": shapes()[0]["content"][0]["image_url"]["url"]}],
        }
    ]
    assert client.decisions.create(model="demo", input=given, questions=[question]).answers[0].probability > 0.5
    film = client.files.create(file=ROOT / "examples" / "clip.mp4", purpose="user_data")
    parts = [{"type": "file", "file": {"file_id": film.id}}, {"type": "text", "text": "What happens?"}]
    reply = client.chat.completions.create(model="demo", messages=[{"role": "user", "content": parts}])
    assert reply.choices[0].message.content == "a large red triangle moves right"
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(openai.BadRequestError, match="expected JPEG, PNG") as caught:
        ask(cluster, [{"role": "user", "content": [part]}])
    assert caught.value.param == "messages[0].content[0].image_url"
    assert client.models.retrieve("demo").model_extra["family"] == "owl3"


@on_ray
@pytest.mark.slow
def test_questions_about_a_picture_go_to_the_replica_that_has_seen_it(cluster):
    for number in range(8):
        ask(cluster, picture(number))
    for number in range(8):  # were they spread, not all of them would be found there
        usage = ask(cluster, picture(number)).usage
        assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1


@on_ray
@pytest.mark.slow
def test_ray_listens_on_this_machine_only_and_reports_to_nobody(cluster):
    inodes = set()
    for pid in [cluster.process.pid, *descendants(cluster.process.pid)]:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
            except OSError:
                continue
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                addresses.add(fields[1].partition(":")[0])
    assert addresses
    assert addresses <= {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, and as an address of IPv6
    environment = Path(f"/proc/{replicas(cluster)[0]}/environ").read_bytes()
    assert b"RAY_USAGE_STATS_ENABLED=0" in environment


@on_ray
@pytest.mark.slow
def test_a_killed_replica_takes_what_it_was_saying_and_is_replaced(cluster):
    assert eventually(lambda: num_replicas(cluster) == 2, 30)
    first, second = replicas(cluster)
    ends: dict[int, str] = {}
    begun = threading.Barrier(9)

    def stream(number: int) -> None:
        chunks = iter(ask(cluster, picture(number), **LONG))
        next(chunks)
        begun.wait(120)
        try:
            ends[number] = list(chunks)[-1].choices[0].finish_reason
        except openai.APIError as error:
            ends[number] = error.message

    threads = [threading.Thread(target=stream, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    begun.wait(120)
    os.kill(first, signal.SIGKILL)
    killed = time.monotonic()
    assert eventually(lambda: num_replicas(cluster) < 2, 10)
    assert eventually(lambda: num_replicas(cluster) == 2, 60)
    whole = time.monotonic() - killed
    for thread in threads:
        thread.join(120)
    loading = seconds_to_load()
    said = [end for end in ends.values() if end != "length"]
    assert len(ends) == 8
    assert 0 < len(said) < 8, ends
    assert all("ask once more" in end for end in said), ends
    assert second in replicas(cluster)
    print(f"{len(said)} of 8 streams hit; two replicas again after {whole:.1f} s; loading takes {loading:.1f} s")
    assert whole < max(10, 2.5 * loading)  # the figure is for a machine that does nothing else


def seconds_to_load() -> float:
    """How long a process takes on this machine, now, to be one that has the model."""
    program = "import longview; longview.load('demo')"
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
    return time.monotonic() - began


@on_ray
@pytest.mark.slow
def test_what_nothing_was_said_of_is_asked_again_of_another_replica(cluster):
    assert eventually(lambda: num_replicas(cluster) == 2, 30)
    os.kill(replicas(cluster)[0], signal.SIGKILL)
    for number in range(8):  # some of them had their replica in the one that is dead
        assert ask(cluster, picture(number)).choices[0].finish_reason in ("stop", "length")


@on_ray
@pytest.mark.slow
def test_a_client_that_leaves_is_answered_no_further_by_a_replica(cluster):
    assert eventually(lambda: num_replicas(cluster) == 2, 120)
    stream = ask(cluster, shapes(), **{**LONG, "max_tokens": 3000, "extra_body": {"min_tokens": 3000}})
    next(iter(stream))
    stream.close()
    assert eventually(lambda: used(cluster, 0.5) < 0.25, 5), "it computes on for nobody"


def used(server: Server, period: float) -> float:
    """Seconds of the processor that the replicas use in some seconds."""
    before = sum(map(seconds, replicas(server)))
    time.sleep(period)
    return sum(map(seconds, replicas(server))) - before


def seconds(pid: int) -> float:
    """Of the processor, that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@on_ray
@pytest.mark.slow
def test_a_model_joins_with_replicas_on_the_same_cluster(cluster):
    raylet = next(line for line in descendants(cluster.process.pid).values() if "--gcs-address=" in line)
    address = raylet.partition("--gcs-address=")[2].split()[0]
    options = ("--model", "ovis=demo-ovis2", "--to", cluster.address, "--ray", address)
    with running(*options, environment=TOKEN) as guest:
        assert [model.id for model in cluster.client().models.list().data] == ["demo", "ovis"]
        assert ask(cluster, shapes(), "ovis").choices[0].message.content == "blue"
        assert len(replicas(cluster)) == 3
        assert cluster.client().models.delete("ovis").deleted
        assert [model.id for model in cluster.client().models.list().data] == ["demo"]
        assert guest.process.wait(60) == 0
    assert eventually(lambda: len(replicas(cluster)) == 2, 30)


@on_ray
def test_a_cluster_that_is_not_there_is_told():
    with pytest.raises(RequestError, match=r"no Ray cluster answers at '127\.0\.0\.1:9'"):
        Cluster(ServerOptions(ray="127.0.0.1:9"), 1)


@on_ray
@pytest.mark.slow
def test_a_model_that_cannot_be_opened_is_told_in_one_line():
    with pytest.raises(RuntimeError, match="no-such-folder/nor-this/one") as caught:
        Server("--replicas", "2", "--model", "no-such-folder/nor-this/one")
    assert str(caught.value).startswith("longview: ")
    assert str(caught.value).count("\n") == 1


@on_ray
@pytest.mark.slow
def test_there_are_more_replicas_when_there_are_more_requests_and_none_after_the_end():
    with running("--replicas", "1", "--max-replicas", "2", "--replica-requests", "1") as server:
        assert eventually(lambda: num_replicas(server) == 1, 30)
        stop = threading.Event()

        def keep_asking(number: int) -> None:
            while not stop.is_set():
                list(ask(server, picture(number), **LONG))

        threads = [threading.Thread(target=keep_asking, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        try:
            assert eventually(lambda: num_replicas(server) == 2, 90)
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)
        processes = descendants(server.process.pid)
        assert server.stop() == (0, "")
    assert eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in processes), 20)


def test_a_film_s_session_is_that_of_its_content():
    def job(*parts: dict, blobs: tuple[bytes, ...] = ()) -> str:
        return session_of(Job([{"role": "user", "parts": list(parts)}], {}, blobs))

    film = {"type": "video", "source": {"blob": 0}}
    text = {"type": "text", "text": "Why?"}
    assert job(film, blobs=(b"x",)) == job(text, film, {"type": "image", "source": "b"}, blobs=(b"x",))
    assert job(film, blobs=(b"x",)) != job(film, blobs=(b"y",))
    assert job({"type": "video", "source": ["ab", "c"]}) != job({"type": "video", "source": ["a", "bc"]})
    assert job(text) != job(text)  # without a medium, any replica


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_replicas": 2}, "need --replicas or --ray"),
        ({"replica_requests": 2.0}, "need --replicas or --ray"),
        ({"replicas": 2, "max_loaded": 1}, "--max-loaded is of models in processes"),
        ({"replicas": 4, "max_replicas": 2}, "give at least 4"),
        ({"replicas": 0}, "replicas is 0"),
    ],
)
def test_settings_of_replicas_that_contradict_each_other_are_told(options, expected):
    with pytest.raises(RequestError, match=expected):
        ServerOptions(**options)
