import os
import signal
import subprocess
import sys

import pytest

from cluster.errors import RequestError, UserError
from stages.evaluate.study.definition import VOTES
from stages.evaluate.study.vote_log import Conflict, VoteLog, read_notes, read_votes
from tests.stages.evaluate.study.example_study import vote


def write(folder, *votes):
    log = VoteLog.open(folder, "s")
    for given in votes:
        log.add(given)
    log.close()


def test_votes_are_read_as_they_were_given(tmp_path):
    votes = [vote("anna", 0), vote("anna", 1, "B"), vote("ben", 0, "tie")]
    write(tmp_path, *votes)
    assert read_votes(tmp_path, "s")[0] == votes
    assert read_notes(tmp_path) == []


@pytest.mark.parametrize("length", [1, 40, -1])  # a letter of it, some of it, all but its end
def test_a_torn_last_line_is_cut_off_with_a_note(tmp_path, length):
    write(tmp_path, vote("anna", 0), vote("anna", 1))
    whole = (tmp_path / VOTES).read_bytes()
    torn = (vote("anna", 2).model_dump_json() + "\n").encode()[:length]
    (tmp_path / VOTES).write_bytes(whole + torn)
    assert len(read_votes(tmp_path, "s")[0]) == 2  # an analysis reads around it, and leaves it alone
    assert (tmp_path / VOTES).read_bytes() == whole + torn
    log = VoteLog.open(tmp_path, "s")
    assert "torn" in log.note and (tmp_path / VOTES).read_bytes() == whole
    log.add(vote("anna", 2, "B"))
    log.close()
    assert [v.choice for v in read_votes(tmp_path, "s")[0]] == ["A", "A", "B"]
    (note,) = read_notes(tmp_path)
    assert torn.decode()[:20] in note


def test_rubbish_at_the_end_is_cut_off_too(tmp_path):
    write(tmp_path, vote("anna", 0))
    whole = (tmp_path / VOTES).read_bytes()
    (tmp_path / VOTES).write_bytes(whole + b"\0" * 300 + b"\n")  # what a power cut can leave
    write(tmp_path, vote("anna", 1))
    assert [v.trial for v in read_votes(tmp_path, "s")[0]] == [0, 1]


def test_a_bad_line_within_the_file_is_an_error_that_names_it(tmp_path):
    write(tmp_path, vote("anna", 0), vote("anna", 1))
    lines = (tmp_path / VOTES).read_text().splitlines(keepends=True)
    (tmp_path / VOTES).write_text(lines[0] + "{half a line\n" + lines[1])
    content = (tmp_path / VOTES).read_bytes()
    with pytest.raises(UserError, match="line 2 is no vote"):
        VoteLog.open(tmp_path, "s")
    assert (tmp_path / VOTES).read_bytes() == content


def test_repeated_votes_and_those_of_another_study_are_errors(tmp_path):
    write(tmp_path, vote("anna", 0))
    with pytest.raises(UserError, match="belongs to study s, not to other"):
        read_votes(tmp_path, "other")
    line = (tmp_path / VOTES).read_text()
    (tmp_path / VOTES).write_text(line * 2)
    with pytest.raises(UserError, match="line 2 repeats line 1: anna, 0, better"):
        read_votes(tmp_path, "s")


def test_the_same_vote_counts_once_and_another_is_a_conflict(tmp_path):
    log = VoteLog.open(tmp_path, "s")
    assert log.add(vote("anna", 0)) is True
    assert log.add(vote("anna", 0)) is False
    with pytest.raises(Conflict):
        log.add(vote("anna", 0, "B"))
    assert log.add(vote("anna", 0, "B", question="other")) is True
    log.close()
    assert len(read_votes(tmp_path, "s")[0]) == 2


def test_a_vote_that_cannot_reach_the_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    log = VoteLog.open(tmp_path, "s")
    log.add(vote("anna", 0))
    before = (tmp_path / VOTES).read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            log.add(vote("anna", 1))
    assert (tmp_path / VOTES).read_bytes() == before
    assert log.add(vote("anna", 1)) is True  # there is room again
    log.close()
    assert len(read_votes(tmp_path, "s")[0]) == 2


def test_only_one_server_has_the_file_and_a_killed_one_lets_go(tmp_path):
    program = (
        "import pathlib, time; from stages.evaluate.study.vote_log import VoteLog\n"
        f"log = VoteLog.open(pathlib.Path({str(tmp_path)!r}), 's'); print('open', flush=True); time.sleep(600)"
    )
    other = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(RequestError, match="Another server"):
            VoteLog.open(tmp_path, "s")
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
        other.stdout.close()
    VoteLog.open(tmp_path, "s").close()
