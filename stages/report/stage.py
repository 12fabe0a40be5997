"""The report stage: the page, and the tables behind it as CSV."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
from pydantic import Field

from cluster.artifacts import Artifact
from cluster.config import StageConfig
from cluster.dag import Context
from stages.report.data import gather
from stages.report.page import render_page

PAGE_NAME = "report.html"


class ReportConfig(StageConfig):
    """How the page is titled and how much of it there is."""

    title: str = Field("pairless", min_length=1, max_length=200)
    num_gallery: int = Field(48, ge=0, description="Items in the gallery, evenly from all edit types.")


def write_report(inputs: Mapping[str, Artifact], config: ReportConfig, context: Context) -> None:
    """Writes `report.html` (one file, no outside requests) and `tables/*.csv` from whatever inputs there
    are.
    """
    data = gather(inputs, context.root, context.run_id, config.num_gallery)
    page = render_page(data, config.title).encode("utf-8")
    for name, table in data.tables.items():
        buffer = io.BytesIO()
        pa.csv.write_csv(table, buffer)
        context.out.write_bytes(f"tables/{name}.csv", buffer.getvalue())
    context.out.write_bytes(PAGE_NAME, page)
    context.set_rows(len(data.gallery))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / PAGE_NAME
        path.write_bytes(page)
        context.log_artifact(path)
