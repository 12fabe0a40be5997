import hashlib
import io
import json

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from cluster.errors import RequestError, UserError
from stages.evaluate.study.definition import MEDIA, RATERS, VOTES, Question, read_study
from stages.evaluate.study.order import plan
from stages.evaluate.study.raters import add_raters, find_rater, free_names, read_raters, renew
from stages.evaluate.study.server import create_app
from stages.evaluate.study.vote_log import VoteLog, read_votes
from tests.stages.evaluate.study.example_study import METHODS, QUESTION, made_up, write_made_up

GOOD = {"trial": 0, "question": "better", "choice": "A", "milliseconds": 900}


class Served:
    """A study with raters anna and ben, and its server."""

    def __init__(self, folder, **changes):
        self.folder, self.study = folder, made_up(6, 2, **changes)
        write_made_up(folder, self.study)
        self.tokens = add_raters(folder, ["anna", "ben"])
        self.start()

    def start(self):
        self.id = read_study(self.folder)[1]
        self.log = VoteLog.open(self.folder, self.id)
        self.client = TestClient(create_app(self.folder, self.log), raise_server_exceptions=False)

    def headers(self, rater="anna"):
        return {"Authorization": f"Bearer {self.tokens[rater]}"}

    def get(self, path, rater="anna"):
        return self.client.get(path, headers=self.headers(rater))

    def vote(self, rater="anna", **changes):
        return self.client.post("/api/votes", json=GOOD | changes, headers=self.headers(rater))

    def votes(self):
        return read_votes(self.folder, self.id)[0]


@pytest.fixture
def served(tmp_path):
    result = Served(tmp_path / "study")
    yield result
    result.log.close()


PRIVATE = ("/api/session", "/api/trials/0/reference", "/api/trials/0/a", "/api/trials/0/b")


@pytest.mark.parametrize(
    "token", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic {token}", "{token}", "Bearer {token}x"]
)
def test_without_a_raters_token_there_is_nothing_and_no_vote(served, token):
    headers = {} if token is None else {"Authorization": token.format(token=served.tokens["anna"])}
    for path in PRIVATE:
        assert served.client.get(path, headers=headers).status_code == 401
    assert served.client.post("/api/votes", json=GOOD, headers=headers).status_code == 401
    assert served.client.post("/api/votes", content=b"x" * 100_000, headers=headers).status_code == 401
    assert served.client.get(f"/api/session?token={served.tokens['anna']}").status_code == 401  # addresses are logged
    assert served.votes() == []


def test_tokens_are_kept_as_hashes_and_name_their_rater(served):
    kept = (served.folder / RATERS).read_text()
    assert not any(token in kept for token in served.tokens.values())
    assert len(set(served.tokens.values())) == 2 and min(map(len, served.tokens.values())) >= 40
    raters = read_raters(served.folder)
    for name, token in served.tokens.items():
        assert find_rater(raters, token).name == name
        assert served.get("/api/session", name).json()["rater"] == name
    assert raters[0].token_sha256 == hashlib.sha256(served.tokens["anna"].encode()).hexdigest()


def test_a_renewed_token_replaces_the_old_one_and_raters_keep_their_numbers(served):
    old = read_raters(served.folder)
    token = renew(served.folder, "anna")
    more = add_raters(served.folder, free_names(served.folder, 2))
    raters = read_raters(served.folder)
    assert find_rater(raters, served.tokens["anna"]) is None and find_rater(raters, token).name == "anna"
    assert [(r.name, r.number) for r in raters] == [("anna", 0), ("ben", 1), ("rater-01", 2), ("rater-02", 3)]
    assert find_rater(raters, more["rater-02"]).number == 3 and raters[1] == old[1]
    for names in (["anna"], ["x", "x"], ["../x"], [""], ["a b"]):
        with pytest.raises(RequestError):
            add_raters(served.folder, names)
    with pytest.raises(RequestError, match="did you mean 'anna'"):
        renew(served.folder, "ana")


def test_a_rater_sees_their_own_trials_in_their_order_and_nobody_learns_the_methods(served):
    for number, rater in enumerate(("anna", "ben")):
        for place, trial in enumerate(plan(served.study, number)):
            state = served.get("/api/session", rater)
            assert state.json()["instruction"] == trial.instruction and state.json()["num_done"] == place
            told = state.text + str(state.headers)
            for part, name in (("reference", "reference"), ("a", "A"), ("b", "B")):
                answer = served.get(f"/api/trials/{place}/{part}", rater)
                assert answer.content == (served.folder / MEDIA / trial.files[name]).read_bytes()
                assert Image.open(io.BytesIO(answer.content)).size == (8, 8)
                told += str(answer.headers)
            voted = served.vote(rater, trial=place)
            told += voted.text + str(voted.headers)
            assert not any(word in told for word in (*METHODS, trial.key, "check", "item-", trial.files["A"][:12]))
    assert served.get("/api/session").json()["question"] is None


@pytest.mark.parametrize(
    "path",
    [
        "/api/trials/0/../../study.json", "/api/trials/0/..%2f..%2fstudy.json", "/api/trials/0/raters.json",
        "/api/trials/%2e%2e/a", "/api/trials/-1/a", "/api/trials/8/a", "/api/trials/0/c", "/media/x.png",
        "/votes.jsonl", "/raters.json", "/study.json", "/..%2fraters.json", "/page.py", "/docs", "/openapi.json",
        "/api/trials/99999999999999999999999/a", "/api/trials/0/a/../b%00",
    ],
)  # fmt: skip
def test_only_the_studys_own_pictures_are_served(served, path):
    answer = served.get(path)
    assert answer.status_code in (404, 422)
    assert b"token_sha256" not in answer.content and b"methods" not in answer.content


def test_a_study_that_names_other_files_is_refused(served):
    path = served.folder / "study.json"
    content = json.loads(path.read_text())
    content["items"][0]["reference"] = "../raters.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"items\.0\.reference"):
        read_study(served.folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"choice": "C"}, {"choice": None}, {"choice": "tie"}, {"question": "other"}, {"trial": "0"}, {"trial": -1},
        {"trial": 8}, {"trial": 0.5}, {"milliseconds": -1}, {"milliseconds": 10**12}, {"name": "ben"},
    ],
)  # fmt: skip
def test_a_bad_vote_is_refused_and_nothing_of_it_kept(served, changes):
    assert served.vote(**changes).status_code == 422
    assert served.votes() == [] and (served.folder / VOTES).read_bytes() == b""


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"trial": NaN}', b"\xff\xfe"])
def test_what_is_no_vote_at_all_is_refused(served, body):
    assert served.client.post("/api/votes", content=body, headers=served.headers()).status_code == 422
    long = json.dumps(GOOD).encode() + b" " * 5000
    assert served.client.post("/api/votes", content=long, headers=served.headers()).status_code == 413
    assert served.votes() == []


def test_votes_count_in_order_and_once(served):
    first, second = plan(served.study, 0)[:2]
    assert served.vote(trial=1).status_code == 409
    assert served.vote().json()["num_done"] == 1
    again = served.vote()  # the first answer got lost on its way
    assert (again.status_code, again.json()["num_done"]) == (200, 1)
    changed = served.vote(choice="B")  # from another tab
    assert (changed.status_code, changed.json()["num_done"]) == (409, 1)
    assert changed.json()["instruction"] == second.instruction
    (vote,) = served.votes()
    assert (vote.rater, vote.trial, vote.key, vote.choice) == ("anna", 0, first.key, "A")
    assert vote.chosen == vote.A == first.shown["A"] and vote.B == first.shown["B"]


def test_a_restarted_server_knows_every_vote_and_goes_on(served):
    for place in range(3):
        served.vote(trial=place, choice="AB"[place % 2])
    served.vote("ben", choice="B")
    served.log.close()
    with open(served.folder / VOTES, "ab") as file:
        file.write(b'{"study":"')
    served.start()
    assert served.get("/api/session").json()["num_done"] == 3
    assert served.vote(trial=2).json()["num_done"] == 3  # sent again after the crash: it is there
    for place in range(3, 8):
        assert served.vote(trial=place).status_code == 200
    assert [v.trial for v in served.votes() if v.rater == "anna"] == list(range(8))
    assert served.get("/api/session").json()["question"] is None


def test_several_questions_and_ties(tmp_path):
    served = Served(tmp_path / "study", questions=(QUESTION, Question(key="kept", text="Which keeps more?")), ties=True)
    assert served.vote(question="kept").status_code == 409
    state = served.vote(choice="tie").json()
    assert (state["num_done"], state["question"]) == (0, "kept")
    assert served.vote(question="kept", choice="B").json()["num_done"] == 1
    assert [(v.question, v.chosen is None) for v in served.votes()] == [("better", True), ("kept", False)]
    served.log.close()


def test_a_disk_that_is_full_is_no_vote(served, monkeypatch):
    def full(vote):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(served.log, "add", full)
        assert served.vote().status_code == 503  # the page tries again
    assert served.vote().status_code == 200


def test_the_page_uses_nothing_from_outside(served):
    for path in ("/", "/page.css", "/page.js"):
        answer = served.client.get(path)
        assert answer.status_code == 200 and "://" not in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store" and answer.headers["referrer-policy"] == "no-referrer"
