"""The command line of every pipeline: flags, exit codes, and what is printed."""

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster import record
from cluster.config import apply_settings, build_configs, find_profile, read_profile
from cluster.dag import Stage, leading_to, narrowed, ordered
from cluster.errors import FAILED, OK, STOPPED, RequestError, exit_code
from cluster.folder import Folder
from cluster.plan import MissingInputs, Planned, Selection, make_plan
from cluster.run import Run, RunSettings
from pipelines.show import Live, final_table, plan_table, results_table, table

WIDTH = 160  # of what is written to a file instead of a terminal, in characters
PROFILES = Path(__file__).resolve().parent / "profiles"


def main(
    stages: Sequence[Stage],
    argv: Sequence[str] | None = None,
    *,
    profiles: Path = PROFILES,
    default_targets: Sequence[str] = (),
    costed: Sequence[str] = (),
    tracked: bool = True,
    settings: RunSettings = RunSettings(),
) -> int:
    """Runs a pipeline as its command line says. Returns the exit code.

    0: done; 1: a stage failed, a method lacks pictures of a benchmark's items, or a judge scored nothing; 2: the
    request was wrong; 130: stopped by Ctrl-C or SIGTERM. A profile without `_targets` runs what leads to
    `default_targets`, or else everything. Of the stages `costed` a dry run names the command that tells what they will
    take. `tracked=False` leaves MLflow out.
    """
    arguments = _parser().parse_args(argv)

    def work() -> int:
        if arguments.list:
            print(_list(ordered(stages)))
            return OK
        try:
            return _run(stages, arguments, profiles, default_targets, costed, tracked, settings)
        except MissingInputs as error:
            command = command_for(arguments, error.missing, sys.argv[0])
            raise RequestError(f"{error} This makes them:\n  {command}") from None

    return exit_code(work)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Runs the stages that aren't done yet.")
    parser.add_argument("--profile", help="a YAML file, or a name in pipelines/profiles/")
    parser.add_argument(
        "--root", default="./runs", help="where everything is kept: a path or an fsspec URL (%(default)s)"
    )
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="STAGE.FIELD=VALUE", dest="settings")
    parser.add_argument("--only", type=_names, default=(), metavar="STAGE,...", help="run just these")
    parser.add_argument("--from", metavar="STAGE", dest="start", help="run this one and all that follow, anew")
    parser.add_argument("--force", type=_names, default=(), metavar="STAGE,...", help="run these anew")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and why")
    parser.add_argument("--list", action="store_true", help="list the stages")
    return parser


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _run(
    stages: Sequence[Stage],
    arguments: argparse.Namespace,
    profiles: Path,
    default_targets: Sequence[str],
    costed: Sequence[str],
    tracked: bool,
    settings: RunSettings,
) -> int:
    if not arguments.profile:
        known = ", ".join(sorted(file.stem for file in profiles.glob("*.yaml")))
        raise RequestError(f"Which profile? Give --profile with one of: {known}; or the path of a YAML file.")
    profile = read_profile(find_profile(arguments.profile, profiles))
    targets = profile.targets or default_targets
    every_stage = stages
    stages = leading_to(stages, targets) if targets else stages
    values = apply_settings(profile.values, arguments.settings)
    configs = build_configs({stage.name: stage.config for stage in ordered(stages)}, values)
    stages = narrowed(stages, configs)
    stages = leading_to(stages, targets) if targets else stages
    _refuse_unused(arguments, every_stage, stages)
    root = Folder(arguments.root)
    plan = make_plan(stages, configs, root, Selection(arguments.only, arguments.start, arguments.force))
    print(plan_table(plan), flush=True)
    if arguments.dry_run:
        if asked := [planned.stage.name for planned in plan if planned.state == "run" and planned.stage.name in costed]:
            print("\nTokens, hours and bytes, from a few rows that a model is really asked about:")
            print("\n".join(_cost_command(arguments, name) for name in asked))
        return OK
    request = {
        "set": list(arguments.settings),
        "only": list(arguments.only),
        "from": arguments.start,
        "force": list(arguments.force),
    }
    live = Live(root, sys.stdout)
    run = Run(
        plan,
        root,
        profile=arguments.profile,
        request=request,
        settings=settings,
        tracking=_start_tracking if tracked else None,
        watch=live,
    )
    verb = "Going on with" if run.journal.resumed else "Starting"
    print(f"\n{verb} run {run.journal.run.run_id} in {root.url}", flush=True)
    summary = run.execute()
    live(run.journal.run)
    _print_end(plan, summary, root, run)
    made = [artifact for name, artifact in run.artifacts.items() if run.journal.status(name) in ("ran", "cached")]
    incomplete = [f"{a.stage}: {line}" for a in made for line in a.manifest.figures.get("incomplete", [])]
    for line in incomplete:
        print(f"incomplete: {line}", file=sys.stderr)
    code = {"ok": OK, "cancelled": STOPPED}.get(run.journal.run.status, FAILED)
    return FAILED if code == OK and incomplete else code


def _refuse_unused(arguments: argparse.Namespace, every_stage: Sequence[Stage], stages: Sequence[Stage]) -> None:
    """Raises RequestError for a stage of the pipeline that this request names and its settings leave out."""
    unused = {stage.name for stage in every_stage} - {stage.name for stage in stages}
    for name in (*arguments.only, *((arguments.start,) if arguments.start else ()), *arguments.force):
        if name in unused:
            raise RequestError(
                f"Stage {name!r} isn't used by profile {arguments.profile!r} as it is set: nothing that the profile "
                "makes needs it. Its _targets, or edit.methods, decide what is made."
            )


def _print_end(plan: Sequence[Planned], summary: dict[str, Any], root: Folder, run: Run) -> None:
    print(f"\n{final_table(summary)}")
    if summary["results"]:
        print(f"\n{results_table(summary['results'], shutil.get_terminal_size((WIDTH, 24)).columns)}")
    needed = {need for planned in plan for need in planned.stage.needs}
    print()
    for planned in plan:
        if planned.stage.name not in needed and planned.stage.name in run.artifacts:
            folder = run.artifacts[planned.stage.name].folder
            pages = folder.list(".html")  # a page to open says more than the folder that it stands in
            print(f"{planned.stage.name}: {folder.path(pages[0]) if pages else folder.url}")
    print(f"summary: {record.run_folder(root, run.journal.run.run_id).path('summary.json')}")
    if run.journal.run.tracking_uri:
        from cluster.tracking import open_command

        print(f"MLflow: {open_command(root)}")
    print(f"{summary['status']} in {summary['seconds']:.1f} s", flush=True)


def _start_tracking(*arguments: Any) -> Any:
    from cluster.tracking import (
        start_run,  # MLflow takes seconds to import: only a run that does something pays
    )

    return start_run(*arguments)


def _list(stages: Sequence[Stage]) -> str:
    rows = [("stage", "version", "needs", "resources")]
    for stage in stages:
        resources = f"{stage.resources.cpus:g} CPU"
        if stage.resources.gpus:
            resources += f", {stage.resources.gpus:g} GPU"
        if stage.resources.label:
            resources += f", {stage.resources.label}"
        rows.append((stage.name, stage.version, ", ".join(stage.needs) or "-", resources))
    return table(rows)


def command_for(arguments: argparse.Namespace, missing: Sequence[str], script: str) -> str:
    """The command by which the pipeline `script` makes the missing inputs, set as in `arguments`."""
    return shlex.join([*_begun(arguments, script), "--only", ",".join(missing)])


def _cost_command(arguments: argparse.Namespace, stage: str) -> str:
    return shlex.join([*_begun(arguments, str(PROFILES.parent / "cost.py")), "--stage", stage])


def _begun(arguments: argparse.Namespace, script: str) -> list[str]:
    script = os.path.relpath(script) if os.path.exists(script) else script
    parts = ["python", script, "--profile", arguments.profile]
    if arguments.root != "./runs":
        parts += ["--root", arguments.root]
    return [*parts, "--set", *arguments.settings] if arguments.settings else parts
