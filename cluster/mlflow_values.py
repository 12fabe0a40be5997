"""Values in the forms that MLflow takes."""

import json
from collections.abc import Mapping
from typing import Any

MAX_VALUE = 5900  # MLflow refuses longer values of parameters


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as parameters: (`a.b`, text), cut to the length that MLflow takes."""
    result: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            result += flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            result.append((f"{prefix}{name}", text[:MAX_VALUE]))
    return result


def numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers in nested mappings: {a/b: number}."""
    result: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            result |= numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            result[f"{prefix}{name}"] = float(value)
    return result


def dataset(name: str, digest: str, source: str, rows: int | None) -> Any:
    from mlflow.entities import Dataset, DatasetInput

    profile = json.dumps({"num_rows": rows}) if rows is not None else None
    entity = Dataset(name, digest[:36], "artifact", json.dumps({"uri": source}), schema=None, profile=profile)
    return DatasetInput(entity, tags=[])
