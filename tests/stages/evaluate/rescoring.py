"""Calls `rescore` as people do, and reads what it prints."""

import json

import pytest

from stages.evaluate.rescore import main


def run(capsys, *arguments):
    """Exit code, {(task, method, name): figure}, the whole object, and the lines of the error output."""
    code = main([*arguments, "--json"])
    captured = capsys.readouterr()
    result = json.loads(captured.out) if captured.out else {"figures": []}
    figures = {(f["task"], f["method"], f["name"]): f for f in result["figures"] if f["category"] == "all"}
    return code, figures, result, captured.err.splitlines()


def has(figure, value, n, n_expected):
    return figure["value"] == pytest.approx(value) and (figure["n"], figure["n_expected"]) == (n, n_expected)
