"""The frame of a page: everything is inline, and a content policy forbids every outside request."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable

from stages.report.charts import escape

FOLDER = pathlib.Path(__file__).parent
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def framed(title: str, sections: Iterable[str], css: str = "") -> str:
    """The sections (HTML) as one page in the project's look, with `css` after its own."""
    css = (FOLDER / "page.css").read_text(encoding="utf-8") + css
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + f"\n</main>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )
