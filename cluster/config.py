"""Stage configurations: from a profile (YAML) and `stage.field=value` settings to checked pydantic models."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.errors import RequestError, one_line

_RUNTIME = "runtime"


class StageConfig(BaseModel):
    """Base of every stage's configuration (and of models nested in one): unknown keys are refused, values
    frozen.

    A field is part of the result's identity unless it is declared with `runtime(...)`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), validate_default=True)

    def earlier(self) -> "Sequence[StageConfig]":
        """Configurations, the best first, from whose artifact (`Context.earlier`) this one's can be made with less
        work. What comes out must be the same without it.
        """
        return ()


def runtime(default: Any = ..., **field_kwargs: Any) -> Any:
    """A field that changes how the work is done, not what comes out: workers, batch of inference, paths,
    retries.

    It stays out of the fingerprint. Takes the keywords of `pydantic.Field`.
    """
    return Field(default, json_schema_extra={_RUNTIME: True}, **field_kwargs)


def identity(config: BaseModel) -> dict[str, Any]:
    """The identity fields of a configuration as plain JSON values, nested models included."""
    dumped = config.model_dump(mode="json", exclude=_runtime_fields(config))
    return dumped


def _runtime_fields(value: Any) -> Any:
    """What a dump leaves out, in pydantic's nested form: {field: True or the same for what is in it}."""
    excluded: dict[Any, Any] = {}
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get(_RUNTIME):
                excluded[name] = True
            elif inner := _runtime_fields(getattr(value, name)):
                excluded[name] = inner
    elif isinstance(value, Mapping):
        excluded = {key: inner for key, item in value.items() if (inner := _runtime_fields(item))}
    elif isinstance(value, (list, tuple)):
        excluded = {index: inner for index, item in enumerate(value) if (inner := _runtime_fields(item))}
    return excluded


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` where a known name is near, else the list of what there is."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"there is {', '.join(known) or 'nothing'}"


def find_profile(name: str, folder: Path) -> Path:
    """The file of a profile: a path of a YAML file, or a name in `folder`.

    Raises RequestError with the nearest name if there is none.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise RequestError(f"There is no profile file {name!r}.")
        return path
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    if name not in known:
        raise RequestError(f"There is no profile {name!r} in {folder}; {nearest(name, known)}")
    return folder / f"{name}.yaml"


@dataclass(frozen=True)
class Profile:
    """What a profile says: `values` by stage and field, and the stages (`_targets`) that it is there to make."""

    values: dict[str, dict[str, Any]]
    targets: tuple[str, ...] = ()


def read_profile(path: Path) -> Profile:
    """Reads `{stage: {field: value}}` and `_targets: [stage, ...]`, leaving out the text under `_about`.

    Raises RequestError on bad YAML.
    """
    try:
        profile = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"Profile {path} isn't valid YAML: {one_line(error)}") from None
    if profile is None:
        return Profile({})
    if not isinstance(profile, dict):
        raise RequestError(f"Profile {path} must be a mapping of stage names, not a {type(profile).__name__}.")
    profile.pop("_about", None)
    targets = profile.pop("_targets", [])
    if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
        raise RequestError(f"Profile {path}: _targets must be a list of stage names, not {targets!r}.")
    for stage, fields in profile.items():
        if not isinstance(fields, dict) and fields is not None:
            raise RequestError(f"Profile {path}: {stage} must be a mapping of fields, not {fields!r}.")
    return Profile({str(stage): fields or {} for stage, fields in profile.items()}, tuple(targets))


def apply_settings(profile: Mapping[str, Mapping[str, Any]], settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The profile with every `stage.field=value` put in; a deeper path sets a nested field. Values are YAML.

    Raises RequestError for a setting that isn't of this form.
    """
    result: dict[str, dict[str, Any]] = {stage: dict(fields) for stage, fields in profile.items()}
    for setting in settings:
        path, equals, text = setting.partition("=")
        names = path.strip().split(".")
        if not equals or len(names) < 2 or not all(names):
            raise RequestError(f"--set {setting!r}: write it as stage.field=value.")
        try:
            value = yaml.safe_load(text) if text.strip() else ""
        except yaml.YAMLError:
            value = text
        target = result.setdefault(names[0], {})
        for depth, name in enumerate(names[1:-1], start=2):
            inner = target.get(name) or {}
            if not isinstance(inner, dict):
                raise RequestError(f"--set {setting!r}: {'.'.join(names[:depth])} is {inner!r}, it has no fields.")
            target[name] = target = dict(inner)
        target[names[-1]] = value
    return result


def build_configs(
    models: Mapping[str, type[StageConfig]], values: Mapping[str, Mapping[str, Any]]
) -> dict[str, StageConfig]:
    """Checks every stage's values against its model.

    Raises RequestError for an unknown stage or field (with the nearest right name) and for bad values, one
    line each.
    """
    problems = []
    for stage in values:
        if stage not in models:
            problems.append(f"There is no stage {stage!r}; {nearest(stage, models)}")
    configs = {}
    for stage, model in models.items():
        try:
            configs[stage] = model.model_validate(dict(values.get(stage, {})))
        except ValidationError as error:
            problems += [_described(stage, model, problem) for problem in error.errors()]
    if problems:
        raise RequestError("\n".join(problems))
    return configs


def _described(stage: str, model: type[BaseModel], problem: Mapping[str, Any]) -> str:
    path = ".".join([stage, *(str(part) for part in problem["loc"])])
    if problem["type"] == "extra_forbidden":
        fields = _fields_at(model, problem["loc"][:-1])
        return f"There is no field {path}; {nearest(str(problem['loc'][-1]), fields)}"
    if problem["type"] == "missing":
        return f"{path} isn't set, and it has no default: put it in the profile or give --set {path}=..."
    message = problem["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    hint = ""
    if problem["type"] == "literal_error" and isinstance(problem["input"], str):
        expected = [text.strip().strip("'") for text in problem["ctx"]["expected"].replace(" or ", ",").split(",")]
        if close := difflib.get_close_matches(problem["input"], expected, n=1, cutoff=0.5):
            hint = f"; did you mean {close[0]!r}?"
    return f"{path} = {_short(problem['input'])}: {message}{hint}"


def _short(value: Any, limit: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _fields_at(model: type[BaseModel], path: Sequence[Any]) -> list[str]:
    """The field names of the model at `path` (names, indices and union tags, as pydantic reports them)."""
    for part in path:
        field = model.model_fields.get(str(part))
        if field is not None:
            inner = _inner_model(field.annotation)
            if inner is None:
                return []
            model = inner
    return list(model.model_fields)


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if inner := _inner_model(argument):
            return inner
    return None
