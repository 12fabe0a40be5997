import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster import record
from cluster.config import read_profile
from cluster.dag import Stage
from cluster.folder import Folder
from cluster.lease import this_process
from cluster.record import Progress, RunRecord, StageRecord
from pipelines import cli, status
from pipelines.show import results_table
from tests.cluster.test_plan import make_all, plan_for
from tests.cluster.toys import STAGES

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a folder of profiles; nothing is written outside of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    profiles = tmp_path / "profiles"
    profiles.mkdir()
    (profiles / "starter.yaml").write_text("_about: a small one\nnumbers: {count: 20}\n")
    (profiles / "wrong.yaml").write_text("numbers: {cont: 20}\n")
    return tmp_path


def call(*arguments: str) -> int:
    return cli.main(STAGES, arguments, profiles=Path("profiles"), tracked=False)


def test_list_names_the_stages_with_their_needs(capsys):
    assert call("--list") == 0
    assert "squares  1        numbers         1 CPU" in capsys.readouterr().out


def test_dry_run_says_what_and_why_and_touches_nothing(place, capsys):
    make_all(Folder("runs"), plan_for(Folder("runs"), numbers={"count": 20}))
    files = sorted(str(path) for path in (place / "runs").rglob("*"))
    assert call("--profile", "starter", "--dry-run") == 0
    assert capsys.readouterr().out.count("cached") == 4
    assert call("--profile", "starter", "--set", "squares.power=3", "squares.trouble=kill", "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].startswith("squares  run ") and lines[3].endswith("squares.power: 2 -> 3")
    assert lines[5].startswith("total    run ") and lines[5].endswith("its input squares changed")
    assert sorted(str(path) for path in (place / "runs").rglob("*")) == files


def test_a_dry_run_names_the_command_that_tells_what_it_costs(place, capsys):
    make_all(Folder("runs"), plan_for(Folder("runs"), numbers={"count": 20}))

    def said(*more):
        arguments = ("--profile", "starter", "--dry-run", *more)
        assert cli.main(STAGES, arguments, profiles=Path("profiles"), tracked=False, costed=("squares", "evens")) == 0
        return capsys.readouterr().out

    assert "cost.py" not in said()  # nothing is to be made
    command = said("--set", "squares.power=3").splitlines()[-1]
    assert command.startswith("python ") and command.endswith(
        "cost.py --profile starter --set squares.power=3 --stage squares"
    )


def test_a_profile_with_targets_plans_what_leads_to_them_alone(place, capsys):
    (place / "profiles" / "some.yaml").write_text("_targets: [squares]\nnumbers: {count: 20}\n")
    assert call("--profile", "some", "--dry-run") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == ["numbers", "squares"]
    assert call("--profile", "some", "--set", "total.x=1", "--dry-run") == 2
    assert "There is no stage 'total'" in capsys.readouterr().err
    (place / "profiles" / "some.yaml").write_text("_targets: [sqares]\n")
    assert call("--profile", "some", "--dry-run") == 2
    assert "There is no stage 'sqares'; did you mean 'squares'?" in capsys.readouterr().err


def test_a_need_that_the_settings_do_not_use_is_not_made(place, capsys):
    stages = [
        dataclasses.replace(stage, uses=lambda configs, need: need != "squares" or configs["numbers"].count > 20)
        if stage.name == "total"
        else stage
        for stage in STAGES
    ]
    (place / "profiles" / "some.yaml").write_text("_targets: [total]\n")

    def planned(*arguments):
        code = cli.main(
            stages, ("--profile", "some", "--dry-run", *arguments), profiles=Path("profiles"), tracked=False
        )
        return code, {line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]}

    code, with_it = planned("--set", "numbers.count=21")
    assert code == 0 and "squares" in with_it
    code, without_it = planned("--set", "numbers.count=20")
    assert code == 0 and without_it == with_it - {"squares"}
    assert (
        cli.main(
            stages,
            ("--profile", "some", "--dry-run", "--set", "numbers.count=20", "--only", "squares"),
            profiles=Path("profiles"),
            tracked=False,
        )
        == 2
    )
    assert "'squares' isn't used by profile 'some'" in capsys.readouterr().err


def _leaves(values, prefix=""):
    """The keys of nested settings, joined by dots, with their values."""
    for key, value in values.items():
        yield from _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]


def _is_download(key, value):
    return key.rpartition(".")[2] in ("source", "weights", "head") and str(value).startswith(("data/", "models/"))


def test_the_shipped_profiles_fit_the_pipeline(capsys, tmp_path):
    from pipelines.full import STAGES as full

    file = tmp_path / "download.safetensors"  # in place of what has to be downloaded: benchmarks, weights
    file.write_bytes(b"")
    downloads = {"source": tmp_path, "weights": file, "head": file}
    for profile in sorted((REPOSITORY / "pipelines" / "profiles").glob("*.yaml")):
        values = read_profile(profile).values
        given = [
            f"{key}={downloads[key.rpartition('.')[2]]}" for key, value in _leaves(values) if _is_download(key, value)
        ]
        arguments = ("--profile", str(profile), "--dry-run", *(("--set", *given) if given else ()))
        assert cli.main(full, arguments, default_targets=("report",), tracked=False) == 0, profile
        names = {line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]}
        target = profile.stem.replace("-", "_") if profile.stem.startswith("ablation") else "report"
        assert {name for name in names if name == "report" or name.startswith("ablation")} == {target}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Which profile? Give --profile with one of: starter, wrong"),
        (("--profile", "startr"), "did you mean 'starter'"),
        (("--profile", "absent.yaml"), "no profile file 'absent.yaml'"),
        (("--profile", "wrong"), "There is no field numbers.cont; did you mean 'count'?"),
        (
            ("--profile", "starter", "--set", "number.count=3"),
            "There is no stage 'number'; did you mean 'numbers'?",
        ),
        (
            ("--profile", "starter", "--set", "numbers.count=many"),
            "numbers.count = 'many': input should be a valid",
        ),
        (("--profile", "starter", "--set", "numbers.count"), "write it as stage.field=value"),
        (("--profile", "starter", "--only", "totl"), "There is no stage 'totl'; did you mean 'total'?"),
        (("--profile", "starter", "--only", "total", "--from", "total"), "can't be given together"),
        (("--profile", "starter", "--set", "numbers.folder=/absent"), "There is no file or folder /absent"),
    ],
)
def test_wrong_requests_get_code_2_and_nothing_is_started(arguments, message, place, capsys):
    assert call(*arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""
    assert not (place / "runs").exists()


def test_an_unknown_flag_gets_code_2():
    with pytest.raises(SystemExit) as caught:
        call("--profil", "starter")
    assert caught.value.code == 2


def test_only_without_its_inputs_names_the_command_that_makes_them(capsys):
    assert call("--profile", "starter", "--set", "squares.power=3", "--only", "total") == 2
    error = capsys.readouterr().err
    assert "squares (needed by total); evens (needed by total)" in error
    assert "--profile starter --set squares.power=3 --only numbers,squares,evens" in error


def test_nothing_to_do_takes_no_ray_and_still_writes_the_summary(place, capsys):
    make_all(Folder("runs"), plan_for(Folder("runs"), numbers={"count": 20}))
    assert call("--profile", "starter") == 0
    latest = json.loads((place / "runs" / "runs" / "latest.json").read_text())
    assert latest["status"] == "ok" and {stage["status"] for stage in latest["stages"].values()} == {"cached"}
    assert set(latest) == {"run_id", "profile", "status", "seconds", "stages", "results"}
    assert set(latest["stages"]["total"]) == {
        "status", "why", "seconds", "fingerprint", "artifact", "rows", "mlflow_run_id", "error",
    }  # fmt: skip
    assert "ok in" in capsys.readouterr().out


def test_a_benchmark_that_is_incomplete_gets_code_1_with_its_figures(place, capsys):
    plan = plan_for(Folder("runs"), numbers={"count": 20})
    make_all(Folder("runs"), plan)
    manifest = place / "runs" / "total" / plan["total"].fingerprint / "manifest.json"
    written = json.loads(manifest.read_text())
    written["figures"] = {"results": {"a": {"l1": 0.5}}, "incomplete": ["a has pictures of 7 of 8 items; x: missing"]}
    manifest.write_text(json.dumps(written))
    assert call("--profile", "starter") == 1
    captured = capsys.readouterr()
    assert "incomplete: total: a has pictures of 7 of 8 items; x: missing" in captured.err and "0.5" in captured.out


def test_planning_is_quick_and_imports_nothing_heavy(place):
    """Under 2 s of processor time for 2000 files, the start of Python and all imports included."""
    source = place / "images"
    source.mkdir()
    for index in range(2000):
        (source / f"{index}.bin").write_bytes(bytes([index % 256]) * 1000)
    code = (
        "import sys, time\n"
        "from pipelines.cli import main; from tests.cluster.toys import STAGES; from pathlib import Path\n"
        "code = main(STAGES, sys.argv[1:], profiles=Path('profiles'))\n"
        "heavy = sorted({'ray', 'torch', 'mlflow', 'transformers', 'vllm'} & set(sys.modules))\n"
        "print('SECONDS', time.process_time(), 'HEAVY', heavy, code)"
    )
    command = [
        sys.executable,
        "-c",
        code,
        "--profile",
        "starter",
        "--set",
        f"numbers.folder={source}",
        "--dry-run",
    ]
    environment = {"PYTHONPATH": str(REPOSITORY), "XDG_CACHE_HOME": str(place / "cache"), "PATH": ""}
    time.sleep(2.1)  # files changed just now are read again, since they might change once more unseen
    subprocess.run(command, check=True, env=environment, capture_output=True)
    output = subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout
    line = output.splitlines()[-1].split()
    assert line[0] == "SECONDS" and line[2:] == ["HEAVY", "[]", "0"]
    assert float(line[1]) < 2.0


def test_a_pipeline_with_a_broken_graph_is_refused(capsys):
    stages = [Stage("a", "1", print, STAGES[0].config, needs=("b",))]
    assert cli.main(stages, ["--list"]) == 2
    assert "needs 'b'" in capsys.readouterr().err


# status.py


def write_run(root: Folder, **changes) -> RunRecord:
    now = time.time()
    stages = {
        "numbers": StageRecord(status="ran", seconds=3.25),
        "squares": StageRecord(status="running", started=now - 10),
        "total": StageRecord(),
    }
    values = {"run_id": "20260101-000000-abcdef", "profile": "starter", "started": now - 20, "updated": now}
    run = RunRecord(**(values | {"driver": this_process(), "stages": stages} | changes))
    record.write_run(root, run)
    return run


def test_the_results_have_a_column_for_each_metric_that_some_method_has():
    results = {"byg": {"judge": 8.25, "dino": None, "num_items": 3}, "copy": {"judge": None, "dino": None}}
    found = results_table(results, width=100)
    head, _, byg, copy = (line.split() for line in found.splitlines())
    assert (head, byg, copy) == (["method", "judge", "num_items"], ["byg", "8.25", "3"], ["copy"])


def test_each_kind_of_items_has_its_own_table_as_wide_as_the_terminal():
    results = {"byg": {"right": 0.5, "judge": 8.25, "num_items": 3}, "video/byg": {"frames": 0.25}}
    pictures, clips = results_table(results, width=20).split("\n\n")
    assert pictures.splitlines()[0].split() == ["method", "right", "judge"] and len(pictures.splitlines()[0]) == 20
    assert pictures.splitlines()[-1] == "and 1 more: num_items"
    assert [line.split() for line in clips.splitlines()[::2]] == [["method", "frames"], ["video/byg", "0.25"]]
    assert results_table(results, width=3).splitlines()[0].split() == ["method", "right"]  # one figure always


def test_status_shows_progress_rate_and_time_left(tmp_path, capsys):
    root = Folder(tmp_path / "root")
    run = write_run(root)
    progress = Progress(
        stage="squares",
        done=30,
        total=120,
        unit="rows",
        rate=1.5,
        updated=time.time(),
        figures={"loss": 0.25},
    )
    record.write_progress(root, run.run_id, progress)
    record.write_incident(root, run.run_id, "squares", "Tried again.")
    assert status.main(["--root", root.url]) == 0
    output = capsys.readouterr().out
    assert "profile starter  running" in output and "numbers  ran          3.2 s" in output
    assert "[#####...............] 30/120 rows, 1.5 rows/s, 1:00 left, loss 0.25" in output
    assert "total    pending" in output and "squares: Tried again." in output


def test_status_watches_until_the_end_from_another_process(tmp_path):
    root = Folder(tmp_path / "root")
    run = write_run(root)
    command = [sys.executable, str(REPOSITORY / "pipelines" / "status.py"), "--root", root.url, "--watch"]
    watcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    first = watcher.stdout.readline()
    assert run.run_id in first and "running" in first
    run.status = "ok"
    record.write_run(root, run)
    output, _ = watcher.communicate(timeout=30)
    assert watcher.returncode == 0 and "  ok  " in output


def test_status_tells_a_dead_driver_and_an_unknown_run(tmp_path, capsys):
    root = Folder(tmp_path / "root")
    assert status.main(["--root", root.url]) == 2
    assert "no run under" in capsys.readouterr().err
    write_run(root, driver=this_process().model_copy(update={"pid": 2**22 - 1}))
    assert status.main(["--root", root.url, "--watch"]) == 0
    assert "  killed  " in capsys.readouterr().out
    assert status.main(["--root", root.url, "--run", "20260101-000000-abcdee"]) == 2
    assert "did you mean '20260101-000000-abcdef'" in capsys.readouterr().err
