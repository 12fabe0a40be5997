"""Reads a judge's raw VIEScore answers as they are published: `<task>/<method>/SC.json` and `PQ.json`.

A file is an object {item: answer} or a list of answers that name their item as `key`, `uid` or `item_id`. An answer is

- an object with `score`: a list of numbers, or one number; other fields are left alone; or
- an object with `text`, or a string: the reply as the judge wrote it, in which `score` has two numbers.

SC is the smallest score of the item's SC answer, PQ that of its PQ answer. Whatever can't be read is unscored, with a
reason, and never 0 or a guess. Published answers have guesses in them: VIEScore's script draws a random score for a
reply that it can't read, and notes so in `reasoning`.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import re
from typing import Any, Literal

from cluster.errors import UserError
from stages.evaluate.figures import Problem
from stages.evaluate.judges.viescore import prompt

CALLS = ("SC", "PQ")
ITEM_NAMES = ("key", "uid", "item_id")
GUESS = "guess_if_cannot_parse"  # how VIEScore's script marks a reply that it replaced by a random score
NUM_SCORES = {"SC": 2, "PQ": 2}  # where no answer tells how many scores a call has
MAX_QUOTE = 80
REFUSAL = re.compile(r"\b(sorry|apologi[sz]e|can(?:'|\u2019)?t|cannot|unable|not able|rate_limit_exceeded)\b", re.I)

Failures = Literal["unscored", "official"]
"""What becomes of an answer that is not what it should be.

`unscored`: it is left out. `official`: as in VIEScore's own analysis, for comparison only: guesses count, fractions
are cut off, scores are brought into 0 to 10, any number of scores will do, and an item counts for SC and PQ only if it
has both. A reply without any score is left out here, too.
"""


@dataclasses.dataclass(frozen=True)
class Answers:
    """A method's answers on a task: {item: smallest score} by call, for the items that could be read."""

    task: str
    method: str
    scores: dict[str, dict[str, float]]
    items: frozenset[str]  # all that the files name


def read_answers(folder: pathlib.Path, failures: Failures) -> tuple[list[Answers], list[Problem]]:
    """All tasks and methods below `folder`, and what could not be read.

    Raises:
        UserError: there is nothing in that layout.
    """
    places = [
        (task.name, method.name, method)
        for task in _subfolders(folder)
        for method in _subfolders(task)
        if any((method / f"{call}.json").is_file() for call in CALLS)
    ]
    if not places:
        raise UserError(
            f"{folder}: no answers here. Wanted are <task>/<method>/SC.json and PQ.json in it; give the folder "
            "that has the tasks."
        )
    problems: list[Problem] = []
    unread: set[str] = set()
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    files: dict[tuple[str, str, str], str] = {}
    for task, method, path in places:
        for call in CALLS:
            name = files[task, method, call] = f"{task}/{method}/{call}.json"
            entries, fault = _read_file(path / f"{call}.json", failures)
            found.setdefault((task, method), {})[call] = entries
            problems += [Problem(name, "", fault)] if fault else []
            unread |= {name} if fault else set()
    numbers = _num_scores(found)
    answers = []
    for (task, method), by_call in found.items():
        scores: dict[str, dict[str, float]] = {}
        for call, entries in by_call.items():
            scores[call] = {}
            for key, entry in entries.items():
                score = _smallest(entry, numbers[task, call], failures)
                if isinstance(score, str):
                    problems.append(Problem(files[task, method, call], key, score))
                else:
                    scores[call][key] = score
        items = frozenset(by_call["SC"]) | frozenset(by_call["PQ"])
        for call in CALLS:
            name = files[task, method, call]
            lacking = sorted(items - by_call[call].keys()) if name not in unread else []
            problems += [Problem(name, key, "there is no answer, so the item is unscored.") for key in lacking]
        if failures == "official":
            both = scores["SC"].keys() & scores["PQ"].keys()
            scores = {call: {k: v for k, v in of.items() if k in both} for call, of in scores.items()}
        answers.append(Answers(task, method, scores, items))
    return answers, problems


def _subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


class _Doubled(dict):
    """A JSON object that remembers which names it has twice."""

    def __init__(self, pairs: list[tuple[str, Any]]):
        super().__init__(pairs)
        counts = collections.Counter(name for name, _ in pairs)
        self.doubled = [name for name, count in counts.items() if count > 1]


def _read_file(path: pathlib.Path, failures: Failures) -> tuple[dict[str, Any], str | None]:
    """{item: answer} of a file, and what is wrong with the whole file. A doubled item's answer is a reason."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_Doubled)
    except FileNotFoundError:
        return {}, "the file is missing, so its items are unscored."
    except json.JSONDecodeError as error:
        return {}, f"is no JSON (line {error.lineno}, column {error.colno}: {error.msg}); its items are unscored."
    except UnicodeDecodeError as error:
        return {}, f"isn't UTF-8 (byte {error.start}); its items are unscored. Save it as UTF-8."
    except (OSError, ValueError, RecursionError) as error:  # ValueError: a number of thousands of digits
        return {}, f"can't be read ({error}); its items are unscored."
    if isinstance(content, dict):
        entries, doubled = dict(content), content.doubled
    elif isinstance(content, list):
        names = [_item_name(entry) for entry in content]
        if None in names:
            where = f"answer {names.index(None) + 1} of the list has no item ({', '.join(ITEM_NAMES)})"
            return {}, f"{where}; the file's items are unscored."
        entries = dict(zip(names, content, strict=True))
        doubled = [name for name, count in collections.Counter(names).items() if count > 1]
    else:
        return {}, "is neither an object {item: answer} nor a list of answers; its items are unscored."
    if not entries:
        return {}, "has no answers."
    if failures == "unscored":
        entries |= dict.fromkeys(doubled, _Unreadable("there are two answers for this item, so it is unscored."))
    return entries, None


def _item_name(entry: Any) -> str | None:
    names = [entry[name] for name in ITEM_NAMES if name in entry] if isinstance(entry, dict) else []
    return str(names[0]) if names else None


@dataclasses.dataclass(frozen=True)
class _Unreadable:
    reason: str


def _given(entry: Any) -> list[Any] | _Unreadable:
    """The scores as they stand in an answer, or why there are none."""
    if isinstance(entry, _Unreadable):
        return entry
    if isinstance(entry, dict) and "score" in entry:
        score = entry["score"]
        return list(score) if isinstance(score, list) else [score]
    text = entry.get("text") if isinstance(entry, dict) else entry
    if not isinstance(text, str):
        return _Unreadable("the answer has no `score`, so the item is unscored.")
    scores = prompt.parse(text)
    if not isinstance(scores, str):
        return [scores.first, scores.second]
    if scores in ("no_json", "no_score"):
        what = "the judge refused" if REFUSAL.search(text) else "the reply has no score that can be read"
    else:
        what = f"the reply's score can't be used ({scores})"
    return _Unreadable(f"{what}, so the item is unscored: {_quote(text)}")


def _quote(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= MAX_QUOTE else text[:MAX_QUOTE] + "...")


def _is_guess(entry: Any) -> bool:
    return isinstance(entry, dict) and str(entry.get("reasoning") or "").startswith(GUESS)


def _num_scores(found: dict[tuple[str, str], dict[str, dict[str, Any]]]) -> dict[tuple[str, str], int]:
    """How many scores a task's call has: what most of its answers give."""
    counts: dict[tuple[str, str], collections.Counter[int]] = collections.defaultdict(collections.Counter)
    for (task, _), by_call in found.items():
        for call, entries in by_call.items():
            count = counts[task, call]
            for entry in entries.values():
                given = _given(entry)
                if isinstance(given, list) and given and not _is_guess(entry):
                    count[len(given)] += 1
    return {
        (task, call): max(count, key=lambda n: (count[n], n)) if count else NUM_SCORES[call]
        for (task, call), count in counts.items()
    }


def _smallest(entry: Any, num_scores: int, failures: Failures) -> float | str:
    """The smallest score of an answer, or the reason why it is unscored."""
    given = _given(entry)
    if isinstance(given, _Unreadable):
        return given.reason
    if failures == "official":
        try:
            return float(min(max(0, min(prompt.MAX_SCORE, int(score))) for score in given))
        except (TypeError, ValueError, OverflowError):
            return f"score {_shown(given)} has no number, so the item is unscored."
    if _is_guess(entry):
        return "the score is a random guess for a reply that could not be read, so the item is unscored."
    numbers = [score for score in given if isinstance(score, int | float) and not isinstance(score, bool)]
    if len(numbers) != len(given) or not given:
        return f"score {_shown(given)} is not made of numbers, so the item is unscored."
    if not all(0 <= score <= prompt.MAX_SCORE for score in numbers):
        return f"score {_shown(given)} is out of the range 0 to {prompt.MAX_SCORE}, so the item is unscored."
    if len(given) != num_scores:
        return f"{len(given)} scores where this task's answers have {num_scores}, so the item is unscored."
    return float(min(numbers))


def _shown(given: list[Any]) -> str:
    text = json.dumps(given, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_QUOTE else text[:MAX_QUOTE] + "..."
