"""TIFA for the edits of every file: the questions once for all methods, then a table of answers per file."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cluster.dag import Context
from cluster.vllm import get_engine
from stages.evaluate.perception import tifa_prompt
from stages.evaluate.perception.settings import TifaSettings
from stages.evaluate.perception.tifa import (
    PictureToAsk,
    Question,
    ask_pictures,
    own_questions,
    read_question_file,
    write_questions,
)
from stages.evaluate.tables import Benchmark, EditsFile, pairs, read_image

QUESTIONS = "tifa_questions.parquet"
QUESTIONS_SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("questions", pa.string()),
        ("model", pa.string()),  # that wrote them; none: they were given
        ("prompt_hash", pa.string()),
        ("unscored", pa.string()),  # why an item's own can't be asked
    ]
)


def ask_tifa(
    shards: Mapping[str, EditsFile], benchmark: Benchmark, settings: TifaSettings, schema: pa.Schema, context: Context
) -> None:
    """Writes the answers of every file that isn't done, and before them `tifa_questions.parquet`.

    An item without questions is unscored, as is one whose own aren't of the form. Raises UserError as
    `read_question_file` and `get_engine` do.
    """
    pending = {shard: file for shard, file in shards.items() if not context.out.exists(shard)}
    if not pending:
        return
    questions, reasons = _questions(benchmark, settings, context)
    rows: dict[str, list[dict[str, Any]]] = {shard: [] for shard in pending}
    num_edits = {shard: file.folder.read_table(file.name, ["item_id"]).num_rows for shard, file in pending.items()}
    place: dict[str, tuple[str, dict[str, str]]] = {}

    def keep(shard: str, row: dict[str, Any]) -> None:
        rows[shard].append(row)
        if len(rows[shard]) == num_edits[shard]:
            ordered = sorted(rows.pop(shard), key=lambda r: (r["method"], r["item_id"]))
            context.out.write_table(shard, pa.Table.from_pylist(ordered, schema))

    def pictures() -> Iterator[PictureToAsk]:
        for shard, file in pending.items():
            for item, edit in pairs(benchmark, file):
                names = {"item_id": item["item_id"], "method": edit["method"]}
                if not questions.get(item["item_id"]):
                    reason = reasons.get(item["item_id"]) or "the item has no questions"
                    keep(shard, names | {"unscored": f"tifa: {reason}"})
                    continue
                try:
                    image = read_image(b"" if edit.get("reason") else edit["image"] or b"")
                except (OSError, ValueError, SyntaxError):  # its measures say why it is unscored
                    keep(shard, names)
                    continue
                key = f"{edit['method']}/{item['item_id']}"
                place[key] = (shard, names)
                yield PictureToAsk(key, _png(image), questions[item["item_id"]])

    engine = get_engine(settings.engine, context)
    total = sum(num_edits.values())
    options = {"max_attempts": settings.attempts, "answer_prompt": settings.answer_prompt}
    answered = ask_pictures(engine, pictures(), **options)
    for done, (key, columns) in enumerate(answered, start=1):
        context.check()
        shard, names = place.pop(key)
        keep(shard, names | columns)
        context.progress(done, total, "pictures asked about")


def _questions(
    benchmark: Benchmark, settings: TifaSettings, context: Context
) -> tuple[dict[str, tuple[Question, ...]], dict[str, str]]:
    """Questions by item, and why an item's own can't be asked.

    From the table of an earlier try; from the file that is given; else the item's own, and where it has none written
    by the model now.
    """
    if not context.out.exists(QUESTIONS):
        questions, reasons, writers = _find_questions(benchmark, settings, context)
        rows = [
            {
                "item_id": item_id,
                "questions": json.dumps([[q.text, q.answer] for q in questions.get(item_id, ())], ensure_ascii=False),
                "model": writers.get(item_id),
                "prompt_hash": tifa_prompt.prompt_hash(settings.answer_prompt),
                "unscored": reasons.get(item_id),
            }
            for item_id in sorted(questions.keys() | reasons.keys())
        ]
        context.out.write_table(QUESTIONS, pa.Table.from_pylist(rows, QUESTIONS_SCHEMA))
    table = context.out.read_table(QUESTIONS).to_pylist()
    known = {row["item_id"]: tuple(Question(*q) for q in json.loads(row["questions"])) for row in table}
    return known, {row["item_id"]: row["unscored"] for row in table if row["unscored"]}


def _find_questions(
    benchmark: Benchmark, settings: TifaSettings, context: Context
) -> tuple[dict[str, tuple[Question, ...]], dict[str, str], dict[str, str]]:
    """(questions, reasons why there are none, model that wrote them), each by item."""
    if settings.questions:
        return read_question_file(settings.questions, context.stage), {}, {}
    questions: dict[str, tuple[Question, ...]] = {}
    reasons: dict[str, str] = {}
    captions: dict[str, str] = {}
    for row in _items(benchmark):
        try:
            own = own_questions(row["metadata"])
        except ValueError as error:
            reasons[row["item_id"]] = str(error)
            continue
        if own is not None:
            questions[row["item_id"]] = own
        elif row.get("tgt_caption"):
            captions[row["item_id"]] = row["tgt_caption"]
    if captions:
        engine = get_engine(settings.engine, context)
        options = {"num_questions": settings.num_questions, "max_attempts": settings.attempts}
        questions |= write_questions(engine, captions, **options)
    return questions, reasons, dict.fromkeys(captions, settings.engine.model)


def _items(benchmark: Benchmark) -> Iterator[dict[str, Any]]:
    """Each item's id, metadata and, where there is one, its edit's caption."""
    for name in benchmark.names:
        with benchmark.folder.open(name) as stream:
            there = pq.ParquetFile(stream).schema_arrow.names
        columns = [column for column in ("item_id", "metadata", "tgt_caption") if column in there]
        yield from benchmark.folder.read_table(name, columns).to_pylist()


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
