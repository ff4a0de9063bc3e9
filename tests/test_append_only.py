"""The journal of a job over rows: what is in it is whole, of one job, and of one process."""

from __future__ import annotations

import json
import os

import pytest

from longview.errors import RequestError
from longview.journal import Journal

JOB = {"model": "demo", "direct": 4}


def test_lines_are_there_when_it_is_opened_again(tmp_path):
    path = tmp_path / "sub" / "x.journal.jsonl"
    with Journal(path, JOB) as journal:
        assert journal.lines == []
        journal.append({"row": 1, "text": "Grüße\n"})
        journal.append({"row": 2})
    with Journal(path, JOB) as journal:
        assert journal.lines == [{"row": 1, "text": "Grüße\n"}, {"row": 2}]
        journal.append({"row": 3})
    assert json.loads(path.read_text().splitlines()[0]) == {"job": JOB}
    assert len(path.read_text().splitlines()) == 4


@pytest.mark.parametrize("torn", [b'{"row": 2, "te', b'{"row": 2}'])
def test_a_line_without_its_newline_is_cut_off(tmp_path, torn):
    path = tmp_path / "j"
    with Journal(path, JOB) as journal:
        journal.append({"row": 1})
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    with Journal(path, JOB) as journal:
        assert journal.lines == [{"row": 1}]
        assert path.read_bytes() == whole
        journal.append({"row": 2})
    assert path.read_bytes() == whole + b'{"row": 2}\n'


def test_a_journal_that_was_killed_before_its_first_line_is_whole_begins_anew(tmp_path):
    (tmp_path / "j").write_bytes(b'{"job": {"mod')
    with Journal(tmp_path / "j", JOB) as journal:
        assert journal.lines == []
    assert (tmp_path / "j").read_bytes() == json.dumps({"job": JOB}).encode() + b"\n"


def test_another_job_does_not_go_on_in_it(tmp_path):
    Journal(tmp_path / "j", JOB).close()
    with pytest.raises(
        RequestError, match=r"begun with direct 4, not 8; go on with the same, or choose another output"
    ):
        Journal(tmp_path / "j", JOB | {"direct": 8})
    with pytest.raises(RequestError, match="begun with extra None, not 1"):
        Journal(tmp_path / "j", JOB | {"extra": 1})
    (tmp_path / "other").write_text('{"messages": []}\n')
    with pytest.raises(RequestError, match="no journal of this job"):
        Journal(tmp_path / "other", JOB)
    assert (tmp_path / "other").read_text() == '{"messages": []}\n'


def test_a_damaged_line_is_named(tmp_path):
    Journal(tmp_path / "j", JOB).close()
    with (tmp_path / "j").open("ab") as file:
        file.write(b'\x00\x00\n{"row": 1}\n')
    with pytest.raises(RequestError, match="line 2 is damaged"):
        Journal(tmp_path / "j", JOB)


def test_a_second_process_is_kept_out(tmp_path):
    with Journal(tmp_path / "j", JOB):
        child = os.fork()
        if not child:
            try:
                Journal(tmp_path / "j", JOB)
            except RequestError as error:
                os._exit(7 if "another process is writing" in str(error) else 1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_full_disk_is_one_line_and_leaves_whole_lines(tmp_path, monkeypatch):
    with Journal(tmp_path / "j", JOB) as journal:
        write = os.write

        def half(file, data):
            write(file, data[:5])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.write", half)
        with pytest.raises(RequestError, match=r"No space left on device.*what was finished is kept"):
            journal.append({"row": 1})
        monkeypatch.setattr("os.write", write)
        journal.append({"row": 2})
    with Journal(tmp_path / "j", JOB) as journal:
        assert journal.lines == [{"row": 2}]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="cannot be used"):
        Journal(tmp_path / "file" / "j", JOB)
