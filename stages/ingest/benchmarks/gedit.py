"""GEdit-Bench as the hub has it: Parquet files of the split `train`, English and Chinese instructions side by side."""

from __future__ import annotations

from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import UserError
from cluster.folder import Folder
from stages.ingest.benchmarks.listing import Listed, Listing, plain_path, published
from stages.ingest.sources import parquet_rows

TEXT_COLUMNS = ("task_type", "key", "instruction", "instruction_language", "Intersection_exist")
LANGUAGES = ("en", "cn")


class GEditSettings(BaseModel):
    """Which of the published figures is to be made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    language: Literal["en", "cn"] = Field("en", description="Figures of the two are never mixed.")
    part: Literal["full", "intersection"] = Field(
        "full", description="intersection: the items that every editor of the paper gave an answer to."
    )
    image: Literal["input_image", "input_image_raw"] = Field(
        "input_image", description="What is edited and what the judge sees; the official scripts judge input_image."
    )


def list_gedit(folder: Folder, settings: GEditSettings) -> Listing:
    """The items of one language; an id is `task_type/language/key`, since a key alone repeats.

    Raises UserError: no Parquet file, one without a column, or a row without a key or instruction.
    """
    names = folder.list(".parquet", recursive=True)
    if not names:
        raise UserError(
            f"{folder.url} holds no Parquet file. Name the folder that stepfun-ai/GEdit-Bench was downloaded to; its "
            "tables are data/train-*.parquet. What save_to_disk wrote (.arrow) isn't read."
        )
    items = []
    for name in names:
        _check_columns(folder, name, (*TEXT_COLUMNS, settings.image))
        for row, values in parquet_rows(folder, name, None, TEXT_COLUMNS):
            place = f"{folder.path(name)}, row {row}"
            for column in TEXT_COLUMNS[:4]:
                if not isinstance(values[column], str) or not values[column].strip():
                    raise UserError(f"{place}: {column} is {values[column]!r}, not a text. Download the table again.")
            if values["instruction_language"] not in LANGUAGES:
                raise UserError(f"{place}: instruction_language is {values['instruction_language']!r}, not en or cn.")
            if values["instruction_language"] != settings.language:
                continue
            if settings.part == "intersection" and not values["Intersection_exist"]:
                continue
            item_id = f"{values['task_type']}/{settings.language}/{values['key']}"
            if not plain_path(item_id) or item_id.count("/") != 2:
                raise UserError(f"{place}: {item_id!r} can't name a file. Download the table again.")
            metadata = {"benchmark": "gedit", "intersection": bool(values["Intersection_exist"])}
            metadata |= {"task_type": values["task_type"], "language": settings.language, "key": values["key"]}
            items.append(Listed(item_id, values["task_type"], values["instruction"], name, row, metadata=metadata))
    kind = "intersection" if settings.part == "intersection" else settings.language
    return Listing(folder, items, published(f"gedit_{kind}"), settings.image)


def _check_columns(folder: Folder, name: str, needed: tuple[str, ...]) -> None:
    try:
        with folder.open(name) as stream:
            columns = pq.ParquetFile(stream).schema_arrow.names
    except (pa.ArrowInvalid, OSError) as error:
        text = " ".join(str(error).split())[:200]
        raise UserError(f"{folder.path(name)} isn't a readable Parquet file ({text}). Download it again.") from None
    if missing := [column for column in needed if column not in columns]:
        raise UserError(
            f"{folder.path(name)} has no column {missing[0]!r}; its columns are {', '.join(columns)}. Is it a table of "
            "GEdit-Bench? Take other tables out of the folder."
        )
