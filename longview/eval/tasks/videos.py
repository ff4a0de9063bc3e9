"""Multiple choices about videos."""

from __future__ import annotations

from longview.eval import parsers, prompts
from longview.eval.items import Protocol
from longview.eval.readers import videos
from longview.eval.readers.files import Form
from longview.eval.tasks.task import Task
from longview.requests import MediaOptions

MIDDLE = "owl3-middle"
"""The sampler of mPLUG-Owl3's evaluation."""
_VIDEOMME_FORMS = (
    Form(
        videos.read_videomme,
        ("videomme/test-*.parquet | test-*.parquet | video_mme*.json | videomme*.json", "data/* | video/* | *.mp4"),
        "Parquet or JSON with data/ID.mp4 (and subtitle/ID.srt)",
        ("", "Video-MME"),
    ),
    Form(videos.read_videomme_tsv, ("Video-MME.tsv", "video/*"), "VLMEvalKit's TSV", ("", "Video-MME")),
)
_VIDEOMME = "Three multiple choices about each of 900 videos of 11 seconds to an hour, by their length"

TASKS = (
    Task(
        name="videomme",
        title="Video-MME without subtitles",
        about=f"{_VIDEOMME}; no subtitles are shown.",
        protocols={
            "benchmark": Protocol(prompts.videomme, 16),
            "owl3": Protocol(prompts.owl3_video, 100, "low", frames=128, select=MIDDLE),
        },
        parse=parsers.first_letter,
        citation="Video-MME, arXiv 2405.21075",
        forms=_VIDEOMME_FORMS,
        get="lmms-lab/Video-MME on the hub",
        shows="video",
    ),
    Task(
        name="videomme_subtitles",
        title="Video-MME with subtitles",
        about=f"{_VIDEOMME}; the subtitles of the frames that are shown stand before the question.",
        protocols={
            "benchmark": Protocol(
                prompts.videomme_subtitled(MediaOptions(frames=128, select="uniform")), 16, frames=128, select="uniform"
            ),
        },
        parse=parsers.first_letter,
        citation="Video-MME, arXiv 2405.21075",
        forms=_VIDEOMME_FORMS,
        get="lmms-lab/Video-MME on the hub",
        shows="video",
    ),
    Task(
        name="mvbench",
        title="MVBench",
        about="20 tasks of 200 multiple choices about short videos; some are about seconds of a video, or come as "
        "folders of pictures. Tasks whose files are not there are left out.",
        protocols={
            "owl3": Protocol(
                prompts.owl3_mvbench,
                100,
                "low",
                frames=16,
                select=MIDDLE,
                note="How the authors lay out the options is not published; this is MVBench's own way.",
            ),
        },
        parse=parsers.letter,
        citation="MVBench, arXiv 2311.17005",
        forms=(Form(videos.read_mvbench, ("json/*.json", "video/*"), "the authors' JSON and videos", ("", "MVBench")),),
        get="OpenGVLab/MVBench on the hub",
        shows="video",
    ),
)
