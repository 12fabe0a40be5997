"""The study as a rater meets it: a real browser, a real server in a process of its own, which is killed."""

import random
import re
import signal
import subprocess
import sys
import time

import pytest

from stages.evaluate.study.definition import VOTES, read_study
from stages.evaluate.study.order import plan
from stages.evaluate.study.raters import add_raters
from stages.evaluate.study.vote_log import read_notes, read_votes
from tests.chromium import chromium
from tests.stages.evaluate.study.example_study import METHODS, edit, item, noise, png, prepared, write_clips, write_run

KEYS = {"A": "ArrowLeft", "B": "ArrowRight"}
READY = "asking && session.num_done === {}"


class Server:
    """`serve` in a process of its own; everything that it prints goes to a file."""

    def __init__(self, folder, output, port=0):
        command = [sys.executable, "-m", "stages.evaluate.study", "serve", str(folder), "--port", str(port)]
        with open(output, "ab") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file)
        start, end = output.stat().st_size, time.monotonic() + 90
        while not (found := re.search(rb"http://127\.0\.0\.1:(\d+)/", output.read_bytes()[start:])):
            assert self.process.poll() is None and time.monotonic() < end, output.read_text()
            time.sleep(0.05)
        self.port = int(found[1])

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as page:
        yield page


def check_layout(page):
    """No screen scrolls sideways, and all three pictures are there without scrolling at all."""
    for width, height in ((1280, 900), (390, 844)):
        page.resize(width, height)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        pictures = page.evaluate(
            "PARTS.map((part) => [$(part).naturalWidth > 0, $(part).getBoundingClientRect().bottom < innerHeight])"
        )
        assert pictures == [[True, True]] * 3
    page.resize(1280, 900)


def test_twenty_votes_with_a_crash_in_the_middle(page, tmp_path):
    items = [item(index) for index in range(16)]
    edits = [edit(i, method, png(noise(100 + 2 * i + p))) for i in range(16) for p, method in enumerate(METHODS)]
    folder, output = tmp_path / "study", tmp_path / "output"
    study = prepared(write_run(tmp_path / "root", items, edits), folder)
    token = add_raters(folder, ["anna"])["anna"]
    trials = plan(study, 0)
    assert len(trials) == 20  # 16 pairs and 4 checks
    choices = random.Random(3).choices("AB", k=20)
    server = Server(folder, output)
    try:
        page.open(f"http://127.0.0.1:{server.port}/#token={token}")
        page.wait_for("!$('intro').hidden")
        assert token not in page.evaluate("location.href")
        page.press("Enter")
        for place, choice in enumerate(choices):
            page.wait_for(READY.format(place))
            assert page.evaluate("$('instruction').textContent") == trials[place].instruction
            assert page.evaluate("$('count').textContent") == f"{place} of 20 answered"
            if place == 3:
                check_layout(page)
            if place == 7:  # the server dies with a vote on its way, and in the midst of writing
                server.process.send_signal(signal.SIGSTOP)
                page.press(KEYS[choice])
                page.wait_for("!asking")
                server.kill()
                with open(folder / VOTES, "ab") as file:
                    file.write(b'{"study":"' + read_study(folder)[1].encode())
                page.wait_for("!$('banner').hidden")
                server = Server(folder, output, server.port)  # the page sends it again by itself
                continue
            if place == 13:  # the server dies between votes; the rater goes and opens the link again
                server.kill()
                server = Server(folder, output, server.port)
                page.open(f"http://127.0.0.1:{server.port}/#token={token}")
                page.wait_for("!$('intro').hidden && $('greeting').textContent === 'Welcome back'")
                page.press("Enter")
                page.wait_for(READY.format(place))
            if place == 10:  # buttons, too
                page.evaluate(f"document.querySelector('[data-choice={choice}]').click()")
            else:
                page.press(KEYS[choice])
        page.wait_for("!$('end').hidden && $('ending').textContent === 'Thank you!'")
        page.open(f"http://127.0.0.1:{server.port}/")  # the same tab still knows the token
        page.wait_for("!$('end').hidden")
    finally:
        server.kill()
    votes, _, torn = read_votes(folder, read_study(folder)[1])
    assert [(vote.trial, vote.choice) for vote in votes] == list(enumerate(choices)) and not torn
    for vote, trial in zip(votes, trials, strict=True):
        assert (vote.rater, vote.key, vote.chosen) == ("anna", trial.key, trial.shown[vote.choice])
        assert {"A": vote.A, "B": vote.B} == trial.shown and vote.is_check == trial.is_check
        assert 0 <= vote.milliseconds < 60_000
    assert len(read_notes(folder)) == 1
    printed = output.read_text()
    assert "torn off" in printed and token not in printed and "Traceback" not in printed


def test_clips_play_and_a_wrong_link_says_so(page, tmp_path):
    folder = tmp_path / "study"
    write_clips(folder)
    token = add_raters(folder, ["anna"])["anna"]
    server = Server(folder, tmp_path / "output")
    try:
        page.open(f"http://127.0.0.1:{server.port}/#token={token[:-1]}")
        page.wait_for("!$('end').hidden && $('after').textContent.includes('valid')")
        page.open(f"http://127.0.0.1:{server.port}/#token={token}")
        page.wait_for("!$('intro').hidden")
        page.press("Enter")
        page.wait_for(READY.format(0))
        seen, end = set(), time.monotonic() + 30
        while len(seen) < 3 and time.monotonic() < end:
            seen.add(page.screenshot())
            time.sleep(0.1)
        assert len(seen) >= 3
    finally:
        server.kill()
