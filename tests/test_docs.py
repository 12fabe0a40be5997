"""What README and docs name is there: commands and their options, settings, profiles, files."""

import argparse
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from cluster.config import apply_settings, build_configs, find_profile, read_profile
from pipelines.cli import PROFILES
from pipelines.full import STAGES

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = {
    str(page.relative_to(REPOSITORY)): page.read_text(encoding="utf-8")
    for pattern in ("README.md", "docs/*.md", "stages/starter/models/README.md")
    for page in sorted(REPOSITORY.glob(pattern))
}
MODELS = {stage.name: stage.config for stage in STAGES}
OF_OTHERS = {"--help", "--reasoning-parser"}  # options of argparse and vLLM
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
PROGRAM = re.compile(r"(?<![\w/])python ((?:-m (?:benchmarks|stages)\.|(?:benchmarks|pipelines)/\w+\.py).*)")


def blocks(text: str, language: str) -> list[str]:
    return [body for name, body in FENCE.findall(text) if name == language]


def inline(text: str) -> list[str]:
    """The code within sentences, whose lines may be broken anywhere."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", FENCE.sub("", text))]


def commands() -> Iterator[Any]:
    """The arguments of `python` wherever a program of ours is called; what is left open in them is an X."""
    for page, text in PAGES.items():
        lines = [line for body in blocks(text, "") for line in body.replace("\\\n", " ").splitlines()]
        for line in [*lines, *inline(text)]:
            if found := PROGRAM.search(re.sub(r"<[^>]*>|\.\.\.", "X", line)):
                arguments = shlex.split(found[1], comments=True)
                yield pytest.param(page, arguments, id=f"{page}: {' '.join(arguments)}")


class Parsed(Exception):
    """Ends a program that has understood its arguments."""


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # one program is also a library
@pytest.mark.parametrize(("page", "arguments"), commands())
def test_a_command_is_understood(page, arguments, monkeypatch):
    parse_args = argparse.ArgumentParser.parse_args

    def parsed(*given: Any, **named: Any) -> None:
        raise Parsed(parse_args(*given, **named))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    is_module = arguments[0] == "-m"
    name, rest = (arguments[1], arguments[2:]) if is_module else (arguments[0], arguments[1:])
    monkeypatch.setattr(sys, "argv", [name, *rest])
    with pytest.raises(Parsed) as caught:
        if is_module:
            runpy.run_module(name, run_name="__main__")
        else:
            runpy.run_path(str(REPOSITORY / name), run_name="__main__")
    options = caught.value.args[0]
    if getattr(options, "settings", None) is not None:
        build_configs(MODELS, apply_settings(values_of(options.profile, page), options.settings))
    if name == "pipelines/full.py":
        assert {*options.only, *options.force, options.start} - {None} <= MODELS.keys()


def values_of(profile: str | None, page: str) -> dict[str, dict[str, Any]]:
    """The settings of a profile: one of ours, or one that the page shows under its name (`# gedit.yaml: ...`)."""
    if profile and profile.endswith(".yaml"):
        return yaml.safe_load(next(body for body in blocks(PAGES[page], "yaml") if body.startswith(f"# {profile}")))
    is_ours = profile and not profile.isupper()  # P stands for any
    return read_profile(find_profile(profile, PROFILES)).values if is_ours else {}


@pytest.mark.parametrize(
    "body", [pytest.param(body, id=f"{page}: {body[:40]!r}") for page in PAGES for body in blocks(PAGES[page], "yaml")]
)
def test_settings_are_accepted(body):
    build_configs(MODELS, yaml.safe_load(body))


@pytest.mark.parametrize("page", PAGES)
def test_what_sentences_name_is_there(page):
    text, named = PAGES[page], inline(PAGES[page])
    lines = [*named, *(line for body in blocks(text, "") for line in body.splitlines())]
    targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.M))
    assert {found[1] for line in lines if (found := re.match(r"make ([\w-]+)", line))} <= targets
    profiles = {file.stem for file in PROFILES.glob("*.yaml")}
    assert set(re.findall(r"(?:PROFILE=|--profile )([a-z][\w-]*)(?![\w.-])", text)) <= profiles
    folders = r"(?:stages|cluster|pipelines|benchmarks|tests|docs)/[a-z0-9_/.-]+$"  # capitals stand for any name
    assert [code for code in named if re.match(folders, code) and not (REPOSITORY / code).exists()] == []
    options = {option for code in named for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", code)}
    assert {option for option in options if f'"{option}"' not in sources()} <= OF_OTHERS
    settings = [found[1] for code in named if (found := re.match(r"(\w+(?:\.\w+)+)(?:$|[:=])", code))]
    settings = [path for path in settings if path.split(".")[0] in MODELS and not path.endswith(".html")]
    assert [path for path in settings if not has_setting(path)] == []


def sources() -> str:
    """All of our programs' text."""
    folders = ("benchmarks", "cluster", "pipelines", "stages")
    return "\n".join(file.read_text() for folder in folders for file in (REPOSITORY / folder).rglob("*.py"))


def has_setting(path: str) -> bool:
    """Whether `stage.field`, and so on into nested models, is a setting; below a mapping any name is."""
    stage, *names = path.split(".")
    models: list[Any] = [MODELS[stage]]
    for name in names:
        fields = [model.model_fields[name] for model in models if name in model.model_fields]
        if not fields:
            return False
        inner = [model for field in fields for model in models_in(field.annotation)]
        if not inner:
            return True
        models = inner
    return True


def models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in getattr(annotation, "__args__", ()) for model in models_in(argument)]
