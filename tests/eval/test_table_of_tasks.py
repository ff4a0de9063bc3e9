"""What the table of tasks and the published scores say."""

from __future__ import annotations

import pytest

from longview.eval.published import published, published_of
from longview.eval.tasks import TASKS, find_task
from longview.eval.tasks.table import described, page, row_of


def test_mmes_published_points_are_told_apart():
    found = published_of("mme", "YanweiLi/MGM-2B")
    assert (found.score, found.source.rpartition(": ")[2]) == (1653, "perception 1341, cognition 312")


def test_mmmus_test_split_has_its_published_scores():
    assert {each.model: each.score for each in published("mmmu_test")}["MGM-34B-HD"] == 44.9
    assert published_of("mmmu_test", "MGM-8B-HD") is None
    assert published_of("mathvista", "MGM-34B-HD").score == 43.3


def test_distractor_resistance_says_that_it_never_ran_on_the_real_file():
    assert row_of(find_task("distractor"))["ran"] == "world needs no files; never ran on the real MMBench"
    assert row_of(find_task("world"))["ran"] == "needs no files"
    assert "never ran on the real MMBench" in page()


@pytest.mark.parametrize("name", TASKS)
def test_every_task_describes_each_of_its_protocols(name):
    task = find_task(name)
    protocols = described(task)["protocols"]
    assert list(protocols) == list(task.protocols)
    assert all(each["prompt"] for each in protocols.values())


@pytest.mark.parametrize("name", TASKS)
def test_a_protocol_of_some_sizes_is_a_variant_of_its_familys(name):
    names = find_task(name).protocols
    assert all(each.partition("-")[0] in names for each, protocol in names.items() if protocol.sizes)


@pytest.mark.parametrize("task", ["videomme", "videomme_subtitles"])
def test_video_mmes_own_protocol_says_where_its_authors_count_otherwise(task):
    note = described(TASKS[task])["protocols"]["benchmark"]["note"]
    assert "without a letter nowhere" in note
    assert '"Answer: B"' in note
