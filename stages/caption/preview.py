"""Shows what a data engine asks about one row: the chat as the model gets it, the schema of the answer, the rules.

    python -m stages.caption.preview --engine caption --image picture.png
    python -m stages.caption.preview --engine caption --image picture.png --run

With --run the model is asked; its answers are shown with the rules that they keep and break, and the row that comes
of them.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from cluster.alone import alone
from cluster.artifacts import Artifact, commit
from cluster.config import apply_settings, build_configs, find_profile, read_profile
from cluster.dag import Context
from cluster.errors import RequestError, exit_code, one_line
from cluster.folder import Folder
from stages.caption.asking import Asking, AskingConfig
from stages.caption.conversation import Call, Dropped, Reading
from stages.caption.engines import ENGINES
from stages.caption.rule import Rule, rule_name
from stages.caption.trial import Trial, opened, try_rows

PROFILES = Path(__file__).resolve().parents[2] / "pipelines" / "profiles"
KEY = "preview"
MAX_BYTES = 1 << 30


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 where the model can't be asked; 2 where the request was wrong."""
    arguments = _parser().parse_args(argv)
    return exit_code(lambda: print(_preview(arguments)))


def _preview(arguments: argparse.Namespace) -> str:
    stage, engine = arguments.engine, ENGINES[arguments.engine]
    config = read_config(stage, arguments.profile, arguments.settings)
    row = _row(arguments)
    with alone(stage) as context:
        asking = engine.asks({engine.need: _as_input(engine.need, row, context)}, config, context)
        if not arguments.run:
            return show_first_call(asking, config)
        with opened(config, context) as model:
            trial = try_rows(asking, config, context, model)
        return show_trial(trial, asking, config)


def _parser() -> argparse.ArgumentParser:
    engines = "\n".join(f"  {name:14} {engine.about}: {_NEEDED[name]}" for name, engine in ENGINES.items())
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, epilog=f"engines, and what each takes:\n{engines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--engine", required=True, choices=ENGINES, metavar="ENGINE", help="one of those below")
    parser.add_argument("--image", nargs="+", action="extend", default=[], metavar="PATH", dest="images")
    parser.add_argument("--metadata", default="{}", help="of the picture: '{\"photorealistic\": false}'")
    parser.add_argument("--instruction", metavar="TEXT")
    parser.add_argument("--edit-type", metavar="NAME")
    parser.add_argument("--caption", metavar="TEXT")
    parser.add_argument("--clip", metavar="PATH", help="an animated WebP")
    parser.add_argument("--style", metavar="NAME")
    parser.add_argument("--profile", default="starter", help="whose settings and model (%(default)s)")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="STAGE.FIELD=VALUE", dest="settings")
    parser.add_argument("--run", action="store_true", help="ask the model, too")
    return parser


def read_config(stage: str, profile: str, settings: Sequence[str]) -> AskingConfig:
    """The stage's configuration in a profile with settings. Raises RequestError for one of another stage."""
    for setting in settings:
        if setting.partition(".")[0] != stage:
            raise RequestError(f"--set {setting}: only settings of {stage} matter here: {stage}.FIELD=VALUE.")
    values = apply_settings(read_profile(find_profile(profile, PROFILES)).values, settings)
    config = build_configs({stage: ENGINES[stage].config}, {stage: values.get(stage, {})})[stage]
    # a person's decisions name clips of a run
    return config.model_copy(update={"overrides": None}) if hasattr(config, "overrides") else config


_NEEDED = {
    "caption": "--image PATH [--metadata JSON]",
    "evolve": "--image SOURCE EDITED --instruction TEXT --edit-type NAME",
    "video_prompts": "--caption TEXT",
    "verify_clips": "--clip PATH --style NAME",
    "customize": "--image PATH",
    "propose": "--image PATH [--metadata JSON]",
}


def _row(arguments: argparse.Namespace) -> dict[str, Any]:
    """The one row of the table that the engine reads."""
    images, stage = arguments.images, arguments.engine
    rows = {
        "evolve": lambda: {
            "pair_id": KEY,
            "edit_type": arguments.edit_type,
            "instruction": arguments.instruction,
            "source_image": _bytes(images[0]),
            "target_image": _bytes(images[1]),
        },
        "video_prompts": lambda: {"caption_id": KEY, "caption": arguments.caption},
        "verify_clips": lambda: {"caption_id": KEY, "clip": _bytes(arguments.clip), "style": arguments.style},
    }
    rows |= dict.fromkeys(
        ("caption", "customize", "propose"),
        lambda: {"sample_id": KEY, "image": _bytes(images[0]), "metadata": arguments.metadata},
    )
    num_images = {"caption": 1, "evolve": 2, "customize": 1, "propose": 1}.get(stage, 0)
    texts = {
        "evolve": (arguments.instruction, arguments.edit_type),
        "video_prompts": (arguments.caption,),
        "verify_clips": (arguments.clip, arguments.style),
    }
    if len(images) != num_images or None in texts.get(stage, ()):
        raise RequestError(f"{stage} asks {ENGINES[stage].about}: give it {_NEEDED[stage]}")
    return rows[stage]()


def _bytes(path: str) -> bytes:
    folder = Folder(path)
    try:
        with folder.open("") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RequestError(f"{path} can't be read: {one_line(error)}") from None
    if len(data) > MAX_BYTES:
        raise RequestError(f"{path} has more than {MAX_BYTES} bytes: that is no single picture or clip.")
    return data


def _as_input(need: str, row: Mapping[str, Any], context: Context) -> Artifact:
    """The row as the artifact that the engine's stage reads."""
    folder = Folder(context.root).sub(f"{need}/{KEY}")
    folder.write_table("samples/rows.parquet", pa.Table.from_pylist([row]))
    manifest = commit(
        folder, stage=need, version="", fingerprint=KEY, config={}, identity={}, parents={}, code_version="", run_id="",
    )  # fmt: skip
    return Artifact(need, KEY, folder, manifest)


def show_first_call(asking: Asking, config: AskingConfig) -> str:
    """The first call about the one row in print, and what the calls after it are checked for."""
    (asked,) = asking.rows(asking.keys)
    try:
        call = next(asked.begin())
    except Dropped as dropped:
        return f"The model isn't asked: the row is {dropped.outcome} before, {dropped.reason}."
    except StopIteration:
        return "The model isn't asked: the row needs no answer."
    parts = [show_call(1, call, config), show_rules(asking.rules[1])]
    later = itertools.groupby(enumerate(asking.rules[2:], start=2), key=lambda item: item[1])
    for rules, calls in later:
        numbers = [number for number, _ in calls]
        which = f"Call {numbers[0]} depends" if len(numbers) == 1 else f"Calls {numbers[0]} to {numbers[-1]} depend"
        parts.append(f"{which} on the answer before: --run shows it.\n\n{show_rules(rules)}")
    return "\n\n".join(parts)


def show_call(number: int, call: Call, config: AskingConfig) -> str:
    """Roles, texts, where each picture stands and its size, and the answer's schema."""
    temperatures = ", ".join(f"{value:g}" for value in call.temperatures or config.temperatures)
    lines = [
        f"Call {number} to {config.engine.model}: at most {config.max_tokens} tokens; temperatures {temperatures}, "
        "one for each attempt"
    ]
    for message in call.messages:
        lines += ["", f"[{message['role']}]"]
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        num_images = 0
        for part in parts:
            if part["type"] == "image":
                num_images += 1
                lines.append(f"<picture {num_images}: {_describe(part['image'])}>")
            else:
                lines.append(part["text"])
    schema = "none: the answer is free text" if call.schema is None else json.dumps(call.schema, indent=2)
    return "\n".join([*lines, "", f"JSON schema of the answer: {schema}"])


def _describe(data: bytes) -> str:
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            return f"{image.format}, {image.width} x {image.height} pixels, {len(data):,} bytes"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return f"{len(data):,} bytes that are no picture in PNG, JPEG or WebP"


def show_rules(rules: Sequence[Rule], reading: Reading | None = None) -> str:
    """The rules with their meanings; with a `reading`, whether each is kept, or not applicable (n/a): it is about other
    answers, or nothing is left to judge. An answer that can't be read is judged by the rule that says so alone.
    """
    width = max((len(rule) for rule in rules), default=0)
    if reading is None:
        return "\n".join(["Rules of its answer:", *(f"  {rule:{width}}  {rule.meaning}" for rule in rules)])
    broken: dict[str, str] = {rule_name(reason): reason for reason in reading.reasons}
    lines = []
    for rule in rules:
        if rule in broken:
            state = "BROKEN"
        else:
            state = "n/a" if reading.fields is None or rule in reading.not_applicable else "kept"
        lines.append(f"  {state:6}  {broken.get(rule, str(rule)):{width}}  {rule.meaning}")
    return "\n".join(lines)


def show_trial(trial: Trial, asking: Asking, config: AskingConfig) -> str:
    """Every call with its attempts, their verdicts, and the rows that came of all."""
    parts, shown = [], 0
    attempts = 0
    for exchange in trial.exchanges:
        request, reply = exchange.request, exchange.reply
        if exchange.call != shown:
            call = Call(request.messages, request.schema, lambda text: Reading(None))
            parts.append(show_call(exchange.call, call, config))
            shown, attempts = exchange.call, 0
        attempts += 1
        said = reply.error if reply.error is not None else reply.text
        head = (
            f"Attempt {attempts}: temperature {request.temperature:g}, seed {request.seed}; {reply.prompt_tokens} "
            f"prompt tokens, {reply.completion_tokens} answer tokens, ended by {reply.finish_reason or 'an error'}"
        )
        verdict = show_rules(asking.rules[exchange.call], exchange.reading) if exchange.reading else ""
        parts.append("\n".join(filter(None, [head, textwrap.indent(said, "  > "), verdict])))
    for table, rows in ((asking.table, trial.good), ("dead_letters", trial.bad)):
        for row in rows:
            known = {name: value for name, value in row.items() if value is not None}
            parts.append(f"Row of {table}/: {json.dumps(known, indent=2, ensure_ascii=False)}")
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
