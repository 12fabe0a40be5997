"""The pictures: a few examples at the top, and the gallery of every method's edits side by side."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

from stages.report import words
from stages.report.charts import escape
from stages.report.data import GalleryItem, ReportData
from stages.report.results import ordered_methods, primary_metric, star_method
from stages.report.sample import Disagreement, details, finite

NUM_EXAMPLES = 3
MAX_FRAMES = 24  # of a clip
MAX_SIDE = 384  # larger pictures are reduced for the page
MAX_PIXELS = 50_000_000
PIXEL_ART_SIDE = 128  # pictures up to this size are enlarged without smoothing
MAX_PICTURES_LENGTH = 32_000_000  # characters of all pictures of a gallery
QUALITY = 85  # of larger pictures, which are shown as WebP


def picture(data: bytes | None, alt: str) -> str:
    """An image element with its PNG (large ones: WebP) or a clip's animated WebP inline, or a box that says that there
    is none.
    """
    try:
        with Image.open(io.BytesIO(data or b""), formats=("PNG", "JPEG", "WEBP")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError("too large to show")
            if getattr(image, "n_frames", 1) > 1:
                return _clip(image, alt)
            image = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return '<div class="missing">no image</div>'
    is_pixel_art = max(image.size) <= PIXEL_ART_SIDE
    css_class = ' class="pixels"' if is_pixel_art else ""
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    buffer, kind = io.BytesIO(), "png" if is_pixel_art else "webp"
    if is_pixel_art:
        image.save(buffer, format="PNG", optimize=True)
    else:
        image.save(buffer, format="WEBP", quality=QUALITY)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return (
        f'<img{css_class} src="data:image/{kind};base64,{encoded}" width="{image.width}" '
        f'height="{image.height}" alt="{escape(alt)}">'
    )


def _clip(image: Image.Image, alt: str) -> str:
    """A clip that plays again and again and rests at its end, at most MAX_FRAMES evenly chosen of its frames."""
    num_frames = min(image.n_frames, MAX_FRAMES)
    frames = []
    for place in range(num_frames):
        image.seek(round(place * (image.n_frames - 1) / (num_frames - 1)))
        frames.append(image.convert("RGB"))
        frames[-1].thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    is_pixel_art = max(image.size) <= PIXEL_ART_SIDE
    buffer = io.BytesIO()
    durations = [1000 // num_frames] * (num_frames - 1) + [1500]
    frames[0].save(
        buffer, "WEBP", save_all=True, append_images=frames[1:], duration=durations, loop=0, lossless=is_pixel_art
    )
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    css_class, (width, height) = ' class="pixels"' if is_pixel_art else "", frames[0].size
    return (
        f'<img{css_class} src="data:image/webp;base64,{encoded}" width="{width}" height="{height}" '
        f'alt="{escape(alt)}, as a clip">'
    )


def _is_right(scores: dict[str, Any]) -> bool | None:
    right = scores["whole_scene_right"]
    return None if right is None else right > 0.5


def examples(data: ReportData) -> str:
    """The star method's first edits that came out right, of different edit types; or just its first ones."""
    star = star_method(data)
    if star is None:
        return ""
    shown = [item for item in data.gallery if item.edits.get(star, (None, {}))[0]]
    right = [item for item in shown if _is_right(item.edits[star][1])]
    chosen: list[GalleryItem] = []
    for item in right or shown:
        if len(chosen) < NUM_EXAMPLES and item.edit_type not in {other.edit_type for other in chosen}:
            chosen.append(item)
    if not chosen:
        return ""
    label = escape(words.method(star).label)
    note = f"Edits that {label} got exactly right; the gallery shows the others too." if right else f"Edits by {label}."
    rows = "".join(
        f'<div class="example">{picture(item.source, "source")}<span class="arrow" '
        'aria-hidden="true">→</span>'
        f"{picture(item.edits[star][0], 'edited')}<q>{escape(item.instruction)}</q></div>"
        for item in chosen
    )
    return f'<div class="examples">{rows}<p class="note">{note}</p></div>'


def gallery(data: ReportData) -> str:
    if not data.gallery:
        return ""
    star = star_method(data)
    methods = ordered_methods(data, by_value=False)
    edit_types = sorted({item.edit_type for item in data.gallery})
    filters = filter_buttons("type", "edit type", [("", "All edits"), *((t, t) for t in edit_types)])
    if star and any(_is_right(item.edits[star][1]) is not None for item in data.gallery if star in item.edits):
        label = words.method(star).label
        filters += filter_buttons(
            "right", "result", [("", "Right or not"), ("yes", f"{label} right"), ("no", f"{label} not right")]
        )
    apart = Disagreement(data.tables["scores"].to_pylist() if "scores" in data.tables else [])
    metric, room, items = primary_metric(data), _Room(), ""
    measured = {m for _, _, m in data.summary}
    metric = next((m for m in words.JUDGED if m in measured), metric)
    for item in data.gallery:
        items += _item(item, methods, star, metric, apart, room)
    name = data.anchor("gallery")
    return (
        f'<section id="{name}" class="gallery"><h2>See for yourself</h2>'
        '<p class="lead">The same items for every method, '
        "taken evenly from the kinds of edit in the order of their ids, whatever came out. Choose a picture to see it "
        "larger, with all of its scores and the judge’s own words.</p>"
        f'<div class="filters">{filters}{_fields(methods, metric, apart)}</div>'
        f'<p class="count" aria-live="polite"></p><div class="items">{items}</div>'
        '<dialog aria-label="One edit"><form method="dialog"><button type="submit">Close</button></form>'
        '<h3></h3><div class="large"></div><div class="about"></div></dialog></section>'
    )


def _fields(methods: list[str], metric: str | None, apart: Disagreement) -> str:
    """What chooses among single edits: method, range of the score, whether judge and oracle contradict each other."""
    options = "".join(f'<option value="{escape(m)}">{escape(words.method(m).label)}</option>' for m in methods)
    fields = f'<label>Method <select data-field="method"><option value="">all</option>{options}</select></label>'
    if metric is not None:
        kind = words.METRICS[metric]
        scale, step = (100, 1) if kind.is_share else (kind.maximum, "any")
        label = kind.label + (", %" if kind.is_share else "")
        fields += (
            f'<span class="range" role="group" aria-label="{escape(label)}">{escape(label)} '
            + "–".join(
                f'<input type="number" data-field="{end}" aria-label="{text}" min="0" max="{scale:g}" step="{step}" '
                f'placeholder="{value:g}">'
                for end, text, value in (("low", "at least", 0), ("high", "at most", scale))
            )
            + "</span>"
        )
    against = "oracle" if apart.has_oracle else words.METRICS[apart.metric].label if apart.metric else ""
    if metric in words.JUDGED and against:
        fields += (
            f'<label><input type="checkbox" data-field="apart"> Judge and {escape(against)} disagree</label>'
            '<label>Order <select data-field="order"><option value="">by id</option><option value="gap">by '
            "disagreement</option></select></label>"
        )
    return f'<div class="fields-of-edits">{fields}</div>'


class _Room:
    """What is left of a gallery's length for pictures; they are taken in their order until the page is full."""

    def __init__(self) -> None:
        self.left = MAX_PICTURES_LENGTH

    def __call__(self, element: str) -> str:
        if len(element) > self.left:
            return '<div class="missing">left out: the page is full</div>'
        self.left -= len(element)
        return element


def filter_buttons(name: str, label: str, options: list[tuple[str, str]]) -> str:
    """Buttons (value, text), one of them pressed, for the items whose `data-NAME` is the value; "" is for all."""
    buttons = "".join(
        f'<button type="button" data-filter="{name}" data-value="{escape(value)}" '
        f'aria-pressed="{"false" if value else "true"}">{escape(text)}</button>'
        for value, text in options
    )
    return f'<div role="group" aria-label="{label}">{buttons}</div>'


def _item(
    item: GalleryItem, methods: list[str], star: str | None, metric: str | None, apart: Disagreement, room: _Room
) -> str:
    shown = room(picture(item.source, "source"))
    source = f'<figure class="source">{shown}<figcaption><b>Source</b></figcaption></figure>'
    figures = "".join(_edit(item, method, method == star, metric, apart, room) for method in methods)
    right = _is_right(item.edits[star][1]) if star in item.edits else None
    state = {True: "yes", False: "no", None: ""}[right]
    return (
        f'<article class="item" data-type="{escape(item.edit_type)}" data-right="{state}">'
        f"<h3>{escape(item.instruction)}<small>{escape(item.edit_type)}</small></h3>"
        f'<div class="strip" style="--n:{len(methods) + 1}">{source}{figures}</div></article>'
    )


def _edit(item: GalleryItem, method: str, is_star: bool, metric: str | None, apart: Disagreement, room: _Room) -> str:
    image, scores = item.edits.get(method, (None, {}))
    label = words.method(method).label
    score, gap = scores.get(metric or ""), apart(scores)
    if score is not None and metric and words.METRICS[metric].is_share:
        score *= 100
    shown = room(picture(image, f"{label}: {item.instruction}"))
    return (
        f'<figure class="edit{" ours" if is_star else ""}" data-method="{escape(method)}" data-score="{finite(score)}" '
        f'data-gap="{finite(gap[0] if gap else None)}" data-apart="{"yes" if gap and gap[1] else ""}">'
        f'<button type="button" class="open" aria-haspopup="dialog">{shown}</button><figcaption>'
        f"<b>{escape(label)}</b>{_verdict(scores)}</figcaption><template>{details(scores)}</template></figure>"
    )


def _verdict(scores: dict[str, Any]) -> str:
    """What the oracle says in a word or two, and the judge's overall score."""
    parts = []
    success, preservation = scores.get("edit_success"), scores.get("preservation")
    if success is not None and preservation is not None:
        texts = {
            (True, True): "✓ exactly right",
            (True, False): "✗ rest changed",
            (False, True): "✗ edit not done",
            (False, False): "✗ neither",
        }
        done = success > 0.5, preservation > 0.5
        parts.append(f'<span class="{"ok" if all(done) else "not"}">{texts[done]}</span>')
    if scores.get("judge_overall") is not None:
        parts.append(f"<small>judge {words.value('judge_overall', scores['judge_overall'])}</small>")
    if scores.get("unscored"):
        parts.append(f'<small title="{escape(scores["unscored"])}">not fully scored</small>')
    return "".join(parts)
