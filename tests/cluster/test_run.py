import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import ray
from ray.job_submission import JobSubmissionClient

from cluster import record
from cluster.config import build_configs
from cluster.folder import LEASE_NAME, Folder
from cluster.lease import holder
from cluster.plan import Selection, make_plan
from cluster.run import Run, RunSettings
from tests.cluster.small_disk import SmallDisk
from tests.cluster.toys import STAGES

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = "tests/cluster/toy_pipeline.py"
RAY_COMMAND = Path(sys.executable).with_name("ray")
pytestmark = pytest.mark.usefixtures("ray_cluster")


def run_toys(root: Folder, selection: Selection = Selection(), settings=RunSettings(), **values):
    configs = build_configs({stage.name: stage.config for stage in STAGES}, values)
    run = Run(make_plan(STAGES, configs, root, selection), root, profile="toy", settings=settings)
    return run, run.execute()


def states(summary) -> dict[str, str]:
    return {name: stage["status"] for name, stage in summary["stages"].items()}


def content_hashes(root: Folder) -> dict[str, str]:
    """{stage/fingerprint/file: sha256} of everything that is finished under a root."""
    found = {}
    for stage in STAGES:
        for fingerprint in root.sub(stage.name).subfolders():
            manifest = root.sub(f"{stage.name}/{fingerprint}").read_json("manifest.json")
            for name, entry in manifest["files"].items():
                found[f"{stage.name}/{fingerprint}/{name}"] = entry["sha256"]
    return found


def wait_until(condition: Callable[[], object], seconds: float = 200.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


@pytest.fixture
def root(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "root")


def test_a_whole_run_and_its_record(root: Folder):
    _, summary = run_toys(root)
    assert summary["status"] == "ok" and set(states(summary).values()) == {"ran"}
    assert list(summary["stages"]) == ["numbers", "squares", "evens", "total"]
    assert summary["results"] == {"squares": {"total": 20540}, "evens": {"total": 380}}
    assert [stage["rows"] for stage in summary["stages"].values()] == [40, 40, 20, None]
    assert root.read_json("runs/latest.json") == summary
    assert root.read_json(f"runs/{summary['run_id']}/summary.json") == summary
    for stage in summary["stages"].values():
        names = list(Folder(stage["artifact"]).sizes(hidden=True))
        assert "manifest.json" in names and not any(name.startswith(".") for name in names)
    progress = record.read_progress(root, summary["run_id"], ["numbers"])["numbers"]
    assert (progress.done, progress.total, progress.unit, progress.figures) == (4, 4, "shards", {"last": 3.0})
    log = record.run_folder(root, summary["run_id"]).read_text("logs/squares.log")
    assert log == "squares begin\n"
    before = content_hashes(root)
    _, again = run_toys(root)
    assert set(states(again).values()) == {"cached"} and again["results"] == summary["results"]
    assert content_hashes(root) == before and len(before) == 10
    assert ray.is_initialized(), "a session that was there before the run must outlive it"


def test_a_run_on_an_object_store():
    bucket = f"runs-{uuid.uuid4().hex}"
    Folder(f"s3://{bucket}").fs.mkdir(bucket)
    root, only = Folder(f"s3://{bucket}/root"), Selection(only=("numbers", "squares"))
    _, summary = run_toys(root, only, squares={"trouble": "fault"})
    assert states(summary) == {"numbers": "ran", "squares": "failed", "evens": "skipped", "total": "skipped"}
    log = record.run_folder(root, summary["run_id"]).read_text("logs/squares.log")
    assert "seven is not a square" in log and log.startswith("squares begin\n")
    _, summary = run_toys(root, only)
    assert states(summary) == {"numbers": "cached", "squares": "ran", "evens": "skipped", "total": "skipped"}
    assert root.read_json("runs/latest.json") == summary
    artifact = Folder(summary["stages"]["squares"]["artifact"])
    assert list(artifact.sizes(hidden=True)) == [
        "manifest.json",
        *(f"shard-{i:03}.parquet" for i in range(4)),
    ]
    assert record.read_progress(root, record.run_ids(root)[0], ["numbers"])["numbers"].done == 4


def test_a_failure_stops_only_what_depends_on_it(root: Folder):
    _, summary = run_toys(root, squares={"trouble": "fault"}, evens={"seconds": 1.0})
    assert states(summary) == {"numbers": "ran", "squares": "failed", "evens": "ran", "total": "skipped"}
    assert summary["status"] == "failed" and summary["stages"]["total"]["why"] == "needs squares, which failed"
    error = summary["stages"]["squares"]["error"]
    log = f"{root.url}/runs/{summary['run_id']}/logs/squares.log"
    assert error == f"ValueError: seven is not a square (full traceback: {log})"
    assert "Traceback" in Path(log).read_text() and "make_squares" in Path(log).read_text()
    assert record.read_incidents(root, summary["run_id"]) == [], "an error of the code isn't tried again"
    _, after = run_toys(root)
    assert states(after) == {"numbers": "cached", "squares": "ran", "evens": "cached", "total": "ran"}


def test_the_users_errors_are_told_without_traceback(root: Folder):
    _, summary = run_toys(root, Selection(only=("numbers", "squares")), squares={"trouble": "user"})
    error = summary["stages"]["squares"]["error"]
    assert error == "The squares need numbers that are square. Give them some."
    assert states(summary) == {"numbers": "ran", "squares": "failed", "evens": "skipped", "total": "skipped"}


def test_a_killed_worker_is_replaced_once(root: Folder):
    _, summary = run_toys(root, squares={"trouble": "kill_once"})
    assert summary["status"] == "ok" and states(summary)["squares"] == "ran"
    (incident,) = record.read_incidents(root, summary["run_id"])
    assert incident["stage"] == "squares" and incident["text"].startswith("Tried again after: WorkerCrashedError")
    _, summary = run_toys(root, squares={"trouble": "kill", "power": 3})
    assert states(summary)["squares"] == "failed" and "WorkerCrashedError" in summary["stages"]["squares"]["error"]
    assert len(record.read_incidents(root, summary["run_id"])) == 1


def test_forcing_makes_a_stage_anew_and_leaves_the_rest(root: Folder):
    run_toys(root)
    before = content_hashes(root)
    created = {path: path.stat().st_mtime_ns for path in Path(root.url).glob("*/*/manifest.json")}
    _, summary = run_toys(root, Selection(force=("squares",)))
    assert states(summary) == {"numbers": "cached", "squares": "ran", "evens": "cached", "total": "cached"}
    assert content_hashes(root) == before
    changed = [path.parts[-3] for path, at in created.items() if path.stat().st_mtime_ns != at]
    assert changed == ["squares"]


def test_a_lost_lease_cancels_the_work_and_the_run_takes_what_the_other_makes(root: Folder):
    box = {}
    settings = RunSettings(lease_seconds=3, grace_seconds=5)

    def work() -> None:
        box["summary"] = run_toys(root, settings=settings, numbers={"seconds_per_shard": 2.5})[1]

    thread = threading.Thread(target=work)
    thread.start()
    wait_until(lambda: list(Path(root.url).glob("numbers/*/shard-000.parquet")))
    folder = Folder(next(Path(root.url).glob("numbers/*")))
    stolen = folder.read_json(LEASE_NAME) | {
        "owner": "a thief",
        "run_id": "thief",
        "seconds": 8.0,
        "time": time.time(),
    }
    folder.write_json(LEASE_NAME, stolen)
    wait_until(lambda: "summary" in box or _status(root, "numbers") == "wait")
    num_shards = len(folder.list(".parquet"))
    time.sleep(3)
    assert len(folder.list(".parquet")) == num_shards < 4, "the work went on without the lease"
    thread.join(timeout=200)
    assert box["summary"]["status"] == "ok", "the thief's lease ran out: the run goes on"
    texts = [incident["text"] for incident in record.read_incidents(root, box["summary"]["run_id"])]
    assert texts == ["The lease was lost; the work was cancelled."]


def _status(root: Folder, stage: str) -> str | None:
    ids = record.run_ids(root)
    run = record.read_run(root, ids[-1]) if ids else None
    return run.stages[stage].status if run and stage in run.stages else None


# Whole drivers, in processes of their own


class Driver:
    """A driver from the command line; with `own_ray` it starts a Ray instead of joining that of the tests."""

    def __init__(
        self, root: Folder, profile: Path, *arguments: str, own_ray: bool = False, lease: float = 30,
        entrance: Sequence[str] = (),
    ):  # fmt: skip
        environment = os.environ | {"TOY_LEASE_SECONDS": str(lease), "PYTHONUNBUFFERED": "1"}
        environment.pop("RAY_ADDRESS", None)
        if not own_ray:
            environment["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        self.process = subprocess.Popen(
            [*entrance, sys.executable, SCRIPT, "--profile", str(profile), "--root", root.url, *arguments],
            cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            # who runs the tests in the background of a script hands down that Ctrl-C is ignored
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def end(self, seconds: float = 300) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode, output


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text("numbers: {seconds_per_shard: 0.7, count: 60}\n")
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = Folder(tmp_path_factory.mktemp("undisturbed"))
    _, summary = run_toys(root, numbers={"count": 60})
    assert summary["status"] == "ok"
    return content_hashes(root)


def shards(root: Folder) -> list[Path]:
    return list(Path(root.url).glob("numbers/*/shard-*.parquet"))


def test_a_stopped_then_a_killed_driver_and_the_same_command_again(root: Folder, profile: Path, undisturbed):
    # Slow enough that a busy machine can't make all shards before it sees the signals.
    profile.write_text("numbers: {seconds_per_shard: 4.0, count: 60}\n")
    stopped = Driver(root, profile)
    wait_until(lambda: shards(root))
    stopped.process.terminate()
    code, output = stopped.end()
    assert code == 130, output
    latest = root.read_json("runs/latest.json")
    assert latest["status"] == "failed" and set(states(latest).values()) == {"skipped"}
    assert latest["stages"]["numbers"]["why"] == "the run was stopped"
    assert record.read_run(root, latest["run_id"]).status == "cancelled"
    assert holder(Folder(shards(root)[0].parent)) is None, "a run that ends gives its leases up"
    num_shards = len(shards(root))
    time.sleep(4.5)
    assert len(shards(root)) == num_shards < 5, "the stage's process outlived its run"

    # With such a lease, only a driver that sees that the other one is dead gets on in time.
    killed = Driver(root, profile, lease=3000)
    wait_until(lambda: len(shards(root)) > num_shards)
    os.kill(killed.process.pid, signal.SIGKILL)
    killed.end()
    there = {path.name: path.stat().st_mtime_ns for path in shards(root)}
    assert len(there) < 6 and not list(Path(root.url).glob("numbers/*/manifest.json"))
    run_id = record.run_ids(root)[-1]
    assert run_id != latest["run_id"] and record.read_run(root, run_id).is_abandoned()
    profile.write_text("numbers: {seconds_per_shard: 0.0, count: 60}\n")  # a runtime field: the same work
    code, output = Driver(root, profile, lease=3000).end()
    assert code == 0, output
    assert f"Going on with run {run_id}" in output and "goes on from an attempt that was cut short" in output
    assert content_hashes(root) == undisturbed
    assert {path.name: path.stat().st_mtime_ns for path in shards(root) if path.name in there} == there
    (incident,) = record.read_incidents(root, run_id)
    assert incident["stage"] == "driver" and record.run_ids(root)[-1] == run_id


def test_two_drivers_on_one_root(root: Folder, profile: Path, undisturbed):
    first = Driver(root, profile)
    wait_until(lambda: shards(root))
    second = Driver(root, profile)
    (code_1, output_1), (code_2, output_2) = first.end(), second.end()
    assert (code_1, code_2) == (0, 0), output_1 + output_2
    assert "numbers  wait " in output_2 and "is making it now" in output_2
    assert "made meanwhile by run" in output_2 and content_hashes(root) == undisturbed
    assert len(record.run_ids(root)) == 2


def test_no_ray_is_left_behind(root: Folder, profile: Path):
    """A driver with a Ray of its own, ended by Ctrl-C and by kill -9."""
    for number in (signal.SIGINT, signal.SIGKILL):
        have = len(shards(root))
        driver = Driver(root, profile, own_ray=True)
        wait_until(lambda have=have, driver=driver: len(shards(root)) > have or driver.process.poll() is not None)
        family = psutil.Process(driver.process.pid).children(recursive=True)
        assert any("raylet" in process.name() for process in family)
        # After kill -9 two agents of Ray try for a minute to tell the dead cluster of it, then end too.
        if number == signal.SIGKILL:
            family = [process for process in family if "Agent" not in " ".join(process.cmdline())]
        os.kill(driver.process.pid, number)
        code, output = driver.end()
        assert code == (130 if number == signal.SIGINT else -signal.SIGKILL), output
        _, alive = psutil.wait_procs(family, timeout=30)
        assert not alive, [process.cmdline() for process in alive if process.is_running()]


def test_a_full_disk_is_told_in_a_paragraph(root: Folder, profile: Path, tmp_path: Path, undisturbed):
    place = tmp_path / "disk"
    place.mkdir()
    try:
        disk = SmallDisk(place, megabytes=4)
    except OSError as error:
        pytest.skip(str(error))
    inside = disk.content / "root"
    driver = Driver(Folder(place / "root"), profile, own_ray=True, entrance=disk.entrance)
    try:
        wait_until(lambda: list(inside.glob("numbers/*/shard-*.parquet")) or driver.process.poll() is not None)
        disk.fill()
        code, output = driver.end()
        assert code == 1, output
        told = [line for line in output.splitlines() if "can't be written: No space left on device" in line]
        assert told and all(str(place) in line and "call the same command again" in line for line in told), output
        assert "Traceback" not in output
        disk.make_room()
        shutil.copytree(inside, root.url)  # to a larger one
    finally:
        driver.process.kill()
        driver.process.wait()
        disk.close()
    assert 0 < len(shards(root)) < 6 and not list(Path(root.url).glob("numbers/*/manifest.json"))
    left = list(Path(root.url).glob("numbers/*/.tmp-*"))
    assert not left, "what couldn't be written whole must not take up room"
    code, output = Driver(root, profile).end()
    assert code == 0, output
    assert content_hashes(root) == undisturbed


def takes_jobs(dashboard: str) -> bool:
    """Whether the cluster's agent is up: it starts after the head, and until then every job is refused."""
    try:
        JobSubmissionClient(dashboard).submit_job(entrypoint="true")
    except ConnectionError:
        return False
    except RuntimeError as error:
        assert "No available agent" in str(error), error
        return False
    return True


@pytest.fixture
def cluster_dashboard() -> Iterator[str]:
    """A cluster as its owner starts it. Its agent, which takes jobs, has a port that no other Ray here has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="ray-")  # the paths of sockets have to be short
    command = [
        RAY_COMMAND, "start", "--head", "--block", "--port=0", "--node-ip-address=127.0.0.1", "--num-cpus=4",
        f"--dashboard-port={port}", "--dashboard-agent-listen-port=0", "--object-store-memory=100000000",
        "--disable-usage-stats", f"--temp-dir={folder}",
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield f"http://127.0.0.1:{port}"
    family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    process.wait(60)
    for child in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    shutil.rmtree(folder, ignore_errors=True)


def test_as_a_job_on_a_running_cluster(root: Folder, tmp_path: Path, cluster_dashboard: str):
    """`ray job submit --working-dir`: the project comes along and need not be installed."""
    project = tmp_path / "project"
    for name in ("cluster", "pipelines"):
        shutil.copytree(REPOSITORY / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    (project / "tests" / "cluster").mkdir(parents=True)
    for name in ("toys.py", "toy_pipeline.py"):
        shutil.copy(REPOSITORY / "tests" / "cluster" / name, project / "tests" / "cluster" / name)
    (project / "toy.yaml").write_text("numbers: {count: 20}\n")
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "PYTHONPATH")}
    wait_until(lambda: takes_jobs(cluster_dashboard))
    done = subprocess.run(
        [RAY_COMMAND, "job", "submit", "--address", cluster_dashboard, "--working-dir", ".", "--",
         sys.executable, SCRIPT, "--profile", "toy.yaml", "--root", root.url],
        cwd=project, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout and set(states(root.read_json("runs/latest.json")).values()) == {"ran"}
