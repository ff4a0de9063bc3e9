"""Multiple choices about videos."""

from __future__ import annotations

from longview.eval import parsers, prompts_videos
from longview.eval.items import Prompt, Protocol
from longview.eval.readers import more_videos, videos
from longview.eval.readers.files import Form
from longview.eval.scoring import MLVU
from longview.eval.tasks.task import Task
from longview.requests import MediaOptions

MIDDLE = "owl3-middle"
"""The sampler of mPLUG-Owl3's evaluation."""
UNPUBLISHED = "The authors say up to 128 frames, and no prompt; this is that of their other videos."
UNIFORM = (
    "How many uniform frames the authors show is not published; MDP3, an option of their program, chooses 32, and here "
    "32 are uniform."
)
UNCOUNTED = (
    'The authors count an answer without a letter nowhere, and take the first letter of "Answer: B" for an A; here the '
    "former is wrong, and the latter a B."
)
NOT_ASKED = "Ovis2's authors do not ask it; this is how they ask LongVideoBench."


def _ovis2(prompt: Prompt, note: str = "") -> Protocol:
    return Protocol(
        prompt, 1024, max_partition=1, frames=32, select="uniform", note=" ".join(filter(None, [note, UNIFORM]))
    )


_VIDEOMME_FORMS = (
    Form(
        videos.read_videomme,
        ("videomme/test-*.parquet | test-*.parquet | video_mme*.json | videomme*.json", "data/* | video/* | *.mp4"),
        "Parquet or JSON with data/ID.mp4 (and subtitle/ID.srt)",
        ("", "Video-MME", "videomme"),
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
            "benchmark": Protocol(prompts_videos.videomme, 16, note=UNCOUNTED),
            "owl3": Protocol(
                prompts_videos.owl3_video, 100, "low", frames=128, select=MIDDLE, parse=parsers.owl3_first_letter
            ),
            "ovis2": _ovis2(prompts_videos.ovis2_videomme),
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
                prompts_videos.videomme_subtitled(MediaOptions(frames=128, select="uniform")),
                16,
                frames=128,
                select="uniform",
                note=UNCOUNTED,
            ),
            "ovis2": _ovis2(
                prompts_videos.ovis2_videomme_subtitled(MediaOptions(frames=32, select="uniform")),
                "A subtitle stands once, however many frames it is on.",
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
                prompts_videos.owl3_mvbench,
                100,
                "low",
                frames=16,
                select=MIDDLE,
            ),
            "ovis2": _ovis2(prompts_videos.ovis2_mvbench),
        },
        parse=parsers.letter,
        citation="MVBench, arXiv 2311.17005",
        forms=(
            Form(
                videos.read_mvbench,
                ("json/*.json", "video/* | videos/*"),
                "the authors' JSON and videos",
                ("", "MVBench", "mvbench"),
            ),
            Form(videos.read_mvbench_tsv, ("MVBench.tsv", "video/*"), "VLMEvalKit's TSV", ("", "MVBench", "mvbench")),
        ),
        get="OpenGVLab/MVBench on the hub",
        shows="video",
    ),
    Task(
        name="nextqa",
        title="NextQA, multiple choice, test",
        about="Why, when and what, about short videos of daily life; five options.",
        protocols={
            "owl3": Protocol(prompts_videos.owl3_video, 100, "low", frames=8, select=MIDDLE),
            "ovis2": _ovis2(prompts_videos.ovis2_choice, NOT_ASKED),
        },
        parse=parsers.letter,
        citation="NExT-QA, arXiv 2105.08276",
        forms=(
            Form(
                more_videos.read_nextqa,
                ("MC/test-*.parquet | test-*.parquet | MC/test.csv | mc.csv | test.csv", "NExTVideo/* | videos/*"),
                "Parquet or the authors' CSV, with NExTVideo/",
                ("", "nextqa"),
            ),
        ),
        get="lmms-lab/NExTQA on the hub",
        shows="video",
    ),
    Task(
        name="longvideobench",
        title="LongVideoBench, val",
        about="Multiple choices about what is referred to in videos of up to an hour, by their length.",
        protocols={
            "owl3": Protocol(prompts_videos.owl3_longvideobench, 100, "low", frames=64, select=MIDDLE),
            "ovis2": _ovis2(prompts_videos.ovis2_choice),
        },
        parse=parsers.letter,
        citation="LongVideoBench, arXiv 2407.15754",
        forms=(
            Form(
                more_videos.read_longvideobench,
                ("lvb_val.json", "videos/*"),
                "the authors' JSON and videos",
                ("", "LongVideoBench"),
            ),
            Form(
                more_videos.read_longvideobench_tsv,
                ("LongVideoBench.tsv", "videos/*"),
                "VLMEvalKit's TSV",
                ("", "LongVideoBench"),
            ),
        ),
        get="longvideobench/LongVideoBench on the hub",
        shows="video",
    ),
    Task(
        name="mlvu",
        title="MLVU, multiple choice, dev",
        about="Seven tasks about videos of three minutes to two hours; the mean of their accuracies (M-Avg).",
        protocols={
            "owl3": Protocol(prompts_videos.owl3_video, 100, "low", frames=128, select=MIDDLE, note=UNPUBLISHED),
            "ovis2": _ovis2(prompts_videos.ovis2_mlvu),
        },
        parse=parsers.letter,
        citation="MLVU, arXiv 2406.04264",
        forms=(
            Form(
                more_videos.read_mlvu,
                ("json/*.json", "video/*"),
                "the authors' JSON and videos",
                ("", "MLVU", "MLVU/MLVU"),
            ),
            Form(more_videos.read_mlvu_tsv, ("MLVU_MCQ.tsv",), "VLMEvalKit's TSV", ("", "MLVU")),
        ),
        get="MLVU/MVLU on the hub",
        metric=MLVU,
        shows="video",
    ),
    Task(
        name="lvbench",
        title="LVBench",
        about="Multiple choices about videos of an hour and more.",
        protocols={
            "owl3": Protocol(prompts_videos.owl3_video, 100, "low", frames=128, select=MIDDLE, note=UNPUBLISHED),
            "ovis2": _ovis2(prompts_videos.ovis2_choice, NOT_ASKED),
        },
        parse=parsers.letter,
        citation="LVBench, arXiv 2406.08035",
        forms=(
            Form(
                more_videos.read_lvbench,
                ("video_info.meta.jsonl | data/video_info.meta.jsonl",),
                "the authors' lines, with videos/KEY.mp4",
                ("", "LVBench"),
            ),
        ),
        get="https://github.com/THUDM/LVBench",
        shows="video",
    ),
)
