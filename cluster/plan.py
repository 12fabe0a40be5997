"""What would be done, and why: for each stage `cached`, `run` or `wait`."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster import lease
from cluster.artifacts import Artifact, Manifest, artifact_folder, damage, newest_manifest, read_artifact
from cluster.config import StageConfig, identity, nearest
from cluster.dag import Stage, ordered
from cluster.errors import RequestError
from cluster.folder import Folder, cache_path
from cluster.sources import SourceHashes


@dataclass(frozen=True)
class Selection:
    """What was asked for: `only` these stages; `start` (--from) and all that follows, anew; `force` these
    anew.
    """

    only: tuple[str, ...] = ()
    start: str | None = None
    force: tuple[str, ...] = ()


@dataclass(frozen=True)
class Planned:
    """One stage of a plan. state: cached, run, wait (another run is making it now) or skipped (not asked
    for). earlier: the artifact that it starts from.
    """

    stage: Stage
    config: StageConfig
    fingerprint: str
    parents: dict[str, str]
    sources: dict[str, str]
    state: str
    why: str
    forced: bool = False
    artifact: Artifact | None = None
    earlier: Artifact | None = None


def fingerprint(stage: Stage, config: StageConfig, parents: Mapping[str, str], sources: Mapping[str, str]) -> str:
    """16 hex digits over the stage's name and version, its identity fields, its parents and its sources'
    content.
    """
    content = {
        "stage": stage.name,
        "version": stage.version,
        "identity": identity(config),
        "parents": dict(parents),
        "sources": list(sources.values()),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def make_plan(
    stages: Sequence[Stage],
    configs: Mapping[str, StageConfig],
    root: Folder,
    selection: Selection = Selection(),
) -> list[Planned]:
    """The plan for all stages, parents before children. Starts and writes nothing.

    Raises RequestError for unknown stages, for a source that isn't there, and if `only` lacks the artifact of
    a stage that it needs.
    """
    stages = ordered(stages)
    chosen, forced = _choose(stages, selection)
    hashes = SourceHashes(cache_path() / "sources.json")
    plan: dict[str, Planned] = {}
    for stage in stages:
        config = configs[stage.name]
        parents = {need: plan[need].fingerprint for need in stage.needs}
        paths = list(stage.sources(config)) if stage.sources and _needed(stage, stages, chosen) else []
        sources = {path: _digest(hashes, stage, path) for path in paths}
        key = fingerprint(stage, config, parents, sources)
        artifact = read_artifact(root, stage.name, key)
        broken = damage(artifact) if artifact else None
        if stage.name not in chosen:
            state, why = "skipped", "not asked for"
        elif artifact and not broken and stage.name not in forced:
            state, why = "cached", "nothing changed"
        else:
            state, why = _state(root, stage, config, key, plan, sources, forced, artifact, broken)
        earlier = (
            _earlier(root, stage, config, parents, sources) if state == "run" and stage.name not in forced else None
        )
        why += f"; starts from {earlier.fingerprint}" if earlier else ""
        plan[stage.name] = Planned(
            stage,
            config,
            key,
            parents,
            sources,
            state,
            why,
            stage.name in forced,
            None if broken else artifact,
            earlier,
        )
    hashes.save()
    _require_inputs(plan)
    return list(plan.values())


def _digest(hashes: SourceHashes, stage: Stage, path: str) -> str:
    try:
        return hashes.digest(path)
    except RequestError as error:
        raise RequestError(f"Stage {stage.name}: {error}") from None


def _choose(stages: Sequence[Stage], selection: Selection) -> tuple[set[str], set[str]]:
    """The stages that belong to the run, and those of them that are made anew."""
    names = [stage.name for stage in stages]
    start = (selection.start,) if selection.start else ()
    for name in (*selection.only, *start, *selection.force):
        if name not in names:
            raise RequestError(f"There is no stage {name!r}; {nearest(name, names)}")
    if selection.only and selection.start:
        raise RequestError("--only and --from can't be given together: --from also runs what follows.")
    chosen, forced = set(names), set(selection.force)
    if selection.only:
        chosen = set(selection.only)
        if outside := forced - chosen:
            raise RequestError(f"--force names {', '.join(sorted(outside))}, which --only leaves out.")
    elif selection.start:
        following = {selection.start}
        for stage in stages:
            if following.intersection(stage.needs):
                following.add(stage.name)
        forced |= following
        chosen = following | forced | _ancestors(stages, following | forced)
    return chosen, forced


def _ancestors(stages: Sequence[Stage], names: set[str]) -> set[str]:
    found = set(names)
    for stage in reversed(stages):
        if stage.name in found:
            found.update(stage.needs)
    return found - names


def _needed(stage: Stage, stages: Sequence[Stage], chosen: set[str]) -> bool:
    """Whether the stage's fingerprint matters: it is chosen, or something chosen builds on it."""
    return stage.name in chosen or stage.name in _ancestors(stages, chosen)


def _state(
    root: Folder,
    stage: Stage,
    config: StageConfig,
    key: str,
    plan: Mapping[str, Planned],
    sources: Mapping[str, str],
    forced: set[str],
    artifact: Artifact | None,
    broken: str | None,
) -> tuple[str, str]:
    folder = artifact_folder(root, stage.name, key)
    current = lease.holder(folder)
    if current is not None and current.is_live():
        return "wait", f"{current} is making it now"
    if broken:
        return "run", broken
    if artifact and stage.name in forced:
        return "run", "asked for anew"
    newest = newest_manifest(root, stage.name)
    why = "never made before" if newest is None else _difference(stage, config, newest, plan, sources)
    finished = len(folder.sizes())
    if finished:
        files = "1 file" if finished == 1 else f"{finished} files"
        why += f"; goes on from an attempt that was cut short ({files} there)"
    return "run", why


def _earlier(
    root: Folder, stage: Stage, config: StageConfig, parents: Mapping[str, str], sources: Mapping[str, str]
) -> Artifact | None:
    for before in config.earlier():
        artifact = read_artifact(root, stage.name, fingerprint(stage, before, parents, sources))
        if artifact and not damage(artifact):
            return artifact
    return None


def _difference(
    stage: Stage,
    config: StageConfig,
    newest: Manifest,
    plan: Mapping[str, Planned],
    sources: Mapping[str, str],
) -> str:
    """What differs from the artifact that the stage made last: fields from what to what, parents, sources,
    version.
    """
    reasons = []
    if newest.version != stage.version:
        reasons.append(f"version {newest.version} -> {stage.version}")
    before, after = _flat(newest.identity), _flat(identity(config))
    for name in sorted({*before, *after}):
        old_value, new_value = before.get(name, _ABSENT), after.get(name, _ABSENT)
        if old_value != new_value:
            reasons.append(f"{stage.name}.{name}: {_short(old_value)} -> {_short(new_value)}")
    for name in stage.needs:
        old = newest.parents.get(name)
        if old != plan[name].fingerprint:
            reasons.append(f"its input {name} changed" if old else f"its input {name} is new")
    reasons += [f"its input {name} is gone" for name in newest.parents if name not in stage.needs]
    old_contents, new_contents = list(newest.sources.values()), list(sources.values())
    if old_contents != new_contents:
        by_path = [
            f"{path}: {newest.sources.get(path, 'not there')} -> {digest}"
            for path, digest in sources.items()
            if digest not in old_contents
        ]
        reasons.append("the content of its source changed: " + ("; ".join(by_path) or "other files"))
    return "; ".join(reasons) or "its artifact was removed"


_ABSENT = object()


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as {"a.b": value}; lists stay whole."""
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    result = {}
    for name, inner in value.items():
        result |= _flat(inner, f"{prefix}.{name}" if prefix else str(name))
    return result


def _short(value: Any, limit: int = 60) -> str:
    if value is _ABSENT:
        return "(no such field)"
    text = json.dumps(value, ensure_ascii=False)
    if len(text) <= limit:
        return text
    # Long texts (prompts) mostly share their beginning: a hash tells them apart.
    return f"{text[: limit - 12]}... #{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _require_inputs(plan: Mapping[str, Planned]) -> None:
    absent: dict[str, list[str]] = {}
    needed_by: dict[str, list[str]] = {}
    for planned in reversed(plan.values()):
        wanted = planned.state in ("run", "wait")
        if wanted or planned.stage.name in absent:
            for need in planned.stage.needs:
                if plan[need].state == "skipped" and plan[need].artifact is None:
                    absent.setdefault(need, [])
                    if wanted:
                        needed_by.setdefault(need, []).append(planned.stage.name)
    if absent:
        direct = {name: needed_by[name] for name in plan if name in needed_by}
        raise MissingInputs(direct, [name for name in plan if name in absent])


class MissingInputs(RequestError):
    """`--only` leaves out stages whose artifacts aren't there.

    `missing`: all that have to be made, in order: those that are needed directly and what these need in turn.
    """

    def __init__(self, needed_by: Mapping[str, list[str]], missing: Sequence[str]):
        self.missing = list(missing)
        lines = [f"{name} (needed by {', '.join(users)})" for name, users in needed_by.items()]
        super().__init__(f"These inputs aren't made yet: {'; '.join(lines)}.")
