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
from stages.evaluate.perception.tifa import PictureToAsk, Question, ask_pictures, read_question_file, write_questions
from stages.evaluate.tables import Benchmark, EditsFile, pairs, read_image

QUESTIONS = "tifa_questions.parquet"
QUESTIONS_SCHEMA = pa.schema(
    [("item_id", pa.string()), ("questions", pa.string()), ("model", pa.string()), ("prompt_hash", pa.string())]
)


def ask_tifa(
    shards: Mapping[str, EditsFile], benchmark: Benchmark, settings: TifaSettings, schema: pa.Schema, context: Context
) -> None:
    """Writes the answers of every file that isn't done, and before them `tifa_questions.parquet`.

    An item without questions is unscored. Raises UserError as `read_question_file` and `get_engine` do.
    """
    pending = {shard: file for shard, file in shards.items() if not context.out.exists(shard)}
    if not pending:
        return
    questions = _questions(benchmark, settings, context)
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
                    keep(shard, names | {"unscored": "tifa: the item has no questions"})
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
    answered = ask_pictures(engine, pictures(), max_attempts=settings.attempts)
    for done, (key, columns) in enumerate(answered, start=1):
        context.check()
        shard, names = place.pop(key)
        keep(shard, names | columns)
        context.progress(done, total, "pictures asked about")


def _questions(benchmark: Benchmark, settings: TifaSettings, context: Context) -> dict[str, tuple[Question, ...]]:
    """From the file that is given, from the table of an earlier try, or written by the model now."""
    if context.out.exists(QUESTIONS):
        table = context.out.read_table(QUESTIONS).to_pylist()
        return {row["item_id"]: tuple(Question(*q) for q in json.loads(row["questions"])) for row in table}
    if settings.questions:
        questions, model = read_question_file(settings.questions, context.stage), None
    else:
        engine, model = get_engine(settings.engine, context), settings.engine.model
        questions = write_questions(
            engine, _captions(benchmark), num_questions=settings.num_questions, max_attempts=settings.attempts
        )
    rows = [
        {
            "item_id": item_id,
            "questions": json.dumps([[q.text, q.answer] for q in questions[item_id]], ensure_ascii=False),
            "model": model,
            "prompt_hash": tifa_prompt.prompt_hash(),
        }
        for item_id in sorted(questions)
    ]
    context.out.write_table(QUESTIONS, pa.Table.from_pylist(rows, QUESTIONS_SCHEMA))
    return questions


def _captions(benchmark: Benchmark) -> dict[str, str]:
    """The edits' captions by item, of the items that have one."""
    captions = {}
    for name in benchmark.names:
        with benchmark.folder.open(name) as stream:
            if "tgt_caption" not in pq.ParquetFile(stream).schema_arrow.names:
                continue
        for row in benchmark.folder.read_table(name, ["item_id", "tgt_caption"]).to_pylist():
            if row["tgt_caption"]:
                captions[row["item_id"]] = row["tgt_caption"]
    return captions


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
