"""TIFA through the engine: questions about each caption, the same for all methods, and every picture's answers."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from cluster.chat import ChatReply, ChatRequest, request_seed
from cluster.errors import UserError
from cluster.folder import Folder
from cluster.vllm import Engine
from stages.evaluate.perception import tifa_prompt as prompt
from stages.evaluate.perception.scores import tifa

TEMPERATURE_STEP, MAX_TEMPERATURE = 0.3, 0.9  # greedy first; a reply that can't be read is asked for more warmly


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about a picture, and the answer that the caption gives."""

    text: str
    answer: str = prompt.YES


@dataclasses.dataclass(frozen=True)
class PictureToAsk:
    """An edited picture (PNG) and the questions about its caption, at least one."""

    key: str
    image: bytes
    questions: tuple[Question, ...]


def read_question_file(path: str, stage: str) -> dict[str, tuple[Question, ...]]:
    """Questions by `item_id`. Raises UserError if the file can't be read or an item's questions aren't of the form."""
    try:
        items = json.loads(Folder(path).read_bytes("").decode("utf-8-sig"))
        if not isinstance(items, dict):
            raise ValueError("it is no object {item_id: [question, ...]}")
    except (OSError, ValueError) as error:
        raise UserError(f"{stage}.perception.tifa.questions = {path!r} can't be read ({error}).") from None
    questions = {}
    for item_id, given in items.items():
        try:
            if not isinstance(given, list):
                raise ValueError(f"it has {str(given)[:80]!r} for questions, which is no list")
            questions[item_id] = tuple(_question(question) for question in given)
        except ValueError as error:
            raise UserError(f"{path}: item {item_id!r}: {error}. Repair it.") from None
    return questions


def own_questions(metadata: str | None) -> tuple[Question, ...] | None:
    """The `questions` of an item's metadata, of the form of the file's; None where it has none.

    Raises ValueError where they aren't of that form.
    """
    try:
        value = json.loads(metadata or "{}")
    except (TypeError, json.JSONDecodeError):
        return None
    if not isinstance(value, dict) or value.get("questions") is None:
        return None
    if not isinstance(value["questions"], list):
        raise ValueError(f"its metadata has {str(value['questions'])[:80]!r} for questions, which is no list")
    return tuple(_question(given) for given in value["questions"])


def _question(given: Any) -> Question:
    given = {"question": given} if isinstance(given, str) else given
    if not isinstance(given, dict) or not isinstance(given.get("question"), str) or not given["question"].strip():
        raise ValueError(f"it has {str(given)[:80]!r}, which is no question")
    answer = prompt.read_answer(str(given.get("answer", prompt.YES)))
    if answer is None:
        raise ValueError(
            f"it has a question with the answer {str(given['answer'])[:80]!r}. Ask so that it is Yes or No"
        )
    return Question(given["question"].strip(), answer)


def write_questions(
    engine: Engine, captions: Mapping[str, str], *, num_questions: int, max_attempts: int
) -> dict[str, tuple[Question, ...]]:
    """Questions by item about each caption, all with the answer Yes; none where no reply can be read."""
    chats = {item_id: prompt.build_questions_chat(caption, num_questions) for item_id, caption in captions.items()}
    calls = ((item_id, *chat, prompt.MAX_QUESTIONS_TOKENS) for item_id, chat in chats.items())
    replies = _ask(engine, calls, lambda text: prompt.read_questions(text, num_questions), max_attempts)
    return {item_id: tuple(Question(q) for q in questions or ()) for item_id, questions, _ in replies}


def ask_pictures(
    engine: Engine, pictures: Iterable[PictureToAsk], *, max_attempts: int, answer_prompt: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, columns `tifa`, `tifa_answers` and `unscored`) in the order of completion.

    `tifa_answers` is JSON: [[question, the caption's answer, the model's reply], ...]. A picture with a question
    whose reply can't be read is unscored: a share of the others would be of other questions.
    """
    pending: dict[str, tuple[PictureToAsk, dict[int, tuple[str | None, str]]]] = {}

    def calls() -> Iterator[tuple[str, list[dict], None, int]]:
        for picture in pictures:
            pending[picture.key] = (picture, {})
            for i, question in enumerate(picture.questions):
                messages = prompt.build_answer_chat(picture.image, question.text, answer_prompt)
                yield f"{i}:{picture.key}", messages, None, prompt.MAX_ANSWER_TOKENS

    for name, answer, text in _ask(engine, calls(), prompt.read_answer, max_attempts):
        number, _, key = name.partition(":")
        picture, known = pending[key]
        known[int(number)] = (answer, text)
        if len(known) == len(picture.questions):
            del pending[key]
            yield key, _columns(picture.questions, [known[i] for i in range(len(known))])


def _columns(questions: Sequence[Question], replies: Sequence[tuple[str | None, str]]) -> dict[str, Any]:
    told = [[question.text, question.answer, text] for question, (_, text) in zip(questions, replies, strict=True)]
    columns: dict[str, Any] = {"tifa_answers": json.dumps(told, ensure_ascii=False), "unscored": None}
    answers = [answer for answer, _ in replies]
    if None in answers:
        text = replies[answers.index(None)][1]
        return columns | {"unscored": f"tifa: neither Yes nor No: {' '.join(text.split())[:80]!r}"}
    return columns | {"tifa": tifa(answers, [question.answer for question in questions])}


def tifa_of_replies(tifa_answers: str) -> float | None:
    """The score that `tifa_answers` of a row gives; None where a reply can't be read."""
    answers, expected = [], []
    for _, wanted, text in json.loads(tifa_answers):
        answers.append(prompt.read_answer(text))
        expected.append(wanted)
    return None if None in answers else tifa(answers, expected)


def _ask(engine: Engine, calls: Iterable[tuple[str, list[dict], dict | None, int]], read: Any, max_attempts: int):
    """(key, what `read` makes of the reply or None, the reply's text or error) for each (key, chat, schema, tokens).

    A reply that can't be read is asked for again, up to `max_attempts` times in all; a request's own error is final.
    """
    asked: dict[str, tuple[list[dict], dict | None, int, int]] = {}
    retries: collections.deque[ChatRequest] = collections.deque()

    def request(key: str) -> ChatRequest:
        messages, schema, max_tokens, attempt = asked[key]
        temperature = min(TEMPERATURE_STEP * attempt, MAX_TEMPERATURE)
        seed = request_seed(key, "tifa", attempt) if attempt else None
        return ChatRequest(key, messages, schema, max_tokens, temperature, seed)

    def requests() -> Iterator[ChatRequest | None]:
        for key, messages, schema, max_tokens in calls:
            while retries:
                yield retries.popleft()
            asked[key] = (messages, schema, max_tokens, 0)
            yield request(key)
        while asked:
            yield retries.popleft() if retries else None

    reply: ChatReply
    for reply in engine.generate(requests()):
        *chat, attempt = asked[reply.key]
        found = None if reply.error is not None else read(reply.text)
        if found is None and reply.error is None and attempt + 1 < max_attempts:
            asked[reply.key] = (*chat, attempt + 1)
            retries.append(request(reply.key))
            continue
        del asked[reply.key]
        yield reply.key, found, reply.error or reply.text
