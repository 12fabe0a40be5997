import json
import math

import pyarrow as pa

from stages.evaluate.judge_replies import REPLIES_SCHEMA
from stages.evaluate.judges.tasks import get_judge
from stages.evaluate.raw_replies import check_columns
from stages.evaluate.summary import SCORES_SCHEMA

YES = json.dumps({"Yes": -0.25, "No": -1.5})


def replies(**logprobs):
    """One for each of the two questions about the item, by the name of its call."""
    names = {"item_id": "1", "method": "byg", "pass": 0, "attempt": 0, "text": "Yes", "finish_reason": "length"}
    rows = [names | {"call": call, "logprobs": text} for call, text in logprobs.items()]
    return pa.Table.from_pylist(rows, REPLIES_SCHEMA)


def scores(**columns):
    return pa.Table.from_pylist([{"item_id": "1", "method": "byg"} | columns], SCORES_SCHEMA)


def test_scores_follow_from_the_first_tokens_probabilities():
    judge, p = get_judge("yes_no"), 1 / (1 + math.exp(-1.25))
    right = scores(judge_p_done=p, judge_p_kept=p, judge_p_right=p * p)
    assert not list(check_columns("evaluate", right, judge, replies(edit_done=YES, rest_same=YES)))
    wrong = scores(judge_p_done=p, judge_p_kept=0.5, judge_p_right=p * p)
    (problem,) = check_columns("evaluate", wrong, judge, replies(edit_done=YES, rest_same=YES))
    assert problem.key == "byg 1 judge_p_kept" and "has 0.5, the judge's raw replies say 0.77" in problem.reason


def test_damaged_logprobs_give_no_score():
    given = scores(judge_p_done=1 / (1 + math.exp(-1.25)), judge_p_kept=0.5)
    (problem,) = check_columns("evaluate", given, get_judge("yes_no"), replies(edit_done=YES, rest_same="{"))
    assert problem.key == "byg 1 judge_p_kept"
    why = "judge rest_same: the logprobs '{' are no JSON"
    assert problem.reason == f"has 0.5, the judge's raw replies say None ({why})."
