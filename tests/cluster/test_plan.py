import os
import time
from pathlib import Path

import pytest

from cluster.artifacts import artifact_folder, commit
from cluster.config import build_configs, identity
from cluster.dag import Stage, ordered
from cluster.errors import RequestError
from cluster.folder import Folder
from cluster.lease import Lease
from cluster.plan import MissingInputs, Planned, Selection, make_plan
from tests.cluster.toys import STAGES, PlainConfig


def plan_for(root: Folder, selection: Selection = Selection(), stages=STAGES, **values) -> dict[str, Planned]:
    configs = build_configs({stage.name: stage.config for stage in stages}, values)
    return {planned.stage.name: planned for planned in make_plan(stages, configs, root, selection)}


def make_all(root: Folder, plan: dict[str, Planned], names=None) -> None:
    """Commits artifacts as a run would have, with one small file each."""
    for name in names or plan:
        planned = plan[name]
        folder = artifact_folder(root, name, planned.fingerprint)
        folder.write_text("value.txt", name)
        commit(
            folder, stage=name, version=planned.stage.version, fingerprint=planned.fingerprint,
            config=planned.config.model_dump(mode="json"), identity=identity(planned.config),
            sources=planned.sources, parents=planned.parents, run_id="r", code_version="c",
        )  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "root")


def states(plan: dict[str, Planned]) -> dict[str, str]:
    return {name: planned.state for name, planned in plan.items()}


def test_first_everything_runs_then_nothing(folder: Folder):
    plan = plan_for(folder)
    assert {planned.state for planned in plan.values()} == {"run"}
    assert {planned.why for planned in plan.values()} == {"never made before"}
    make_all(folder, plan)
    assert {planned.state for planned in plan_for(folder).values()} == {"cached"}


def test_a_changed_field_is_named_and_only_what_follows_runs(root: Folder):
    make_all(root, plan_for(root))
    plan = plan_for(root, squares={"power": 3, "mode": "rounded"})
    assert states(plan) == {"numbers": "cached", "squares": "run", "evens": "cached", "total": "run"}
    assert plan["squares"].why == 'squares.mode: "exact" -> "rounded"; squares.power: 2 -> 3'
    assert plan["total"].why == "its input squares changed"


def test_a_runtime_field_changes_nothing(root: Folder):
    make_all(root, plan_for(root))
    plan = plan_for(root, numbers={"seconds_per_shard": 9.0}, squares={"trouble": "kill"})
    assert {planned.state for planned in plan.values()} == {"cached"}


def test_a_changed_version_is_named(root: Folder):
    make_all(root, plan_for(root))
    stages = [Stage(**(vars(stage) | {"version": "2"})) if stage.name == "evens" else stage for stage in STAGES]
    plan = plan_for(root, stages=stages)
    assert plan["evens"].why == "version 1 -> 2"
    assert states(plan) == {"numbers": "cached", "squares": "cached", "evens": "run", "total": "run"}


def test_a_new_need_is_named(root: Folder):
    make_all(root, plan_for(root))
    stages = [
        Stage(**(vars(stage) | {"needs": ("numbers", "squares")})) if stage.name == "evens" else stage
        for stage in STAGES
    ]
    assert plan_for(root, stages=stages)["evens"].why == "its input squares is new"


def test_the_content_of_sources_counts_and_their_place_does_not(root: Folder, tmp_path: Path):
    first, second = tmp_path / "first", tmp_path / "second"
    for source in (first, second):
        (source / "deep").mkdir(parents=True)
        (source / "deep" / "a.txt").write_text("a")
        (source / "b.txt").write_text("b")
    make_all(root, plan_for(root, numbers={"folder": str(first)}))
    assert plan_for(root, numbers={"folder": str(second)})["numbers"].state == "cached"
    (second / "b.txt").write_text("B")
    os.utime(second / "b.txt", ns=(1, 1))
    changed = plan_for(root, numbers={"folder": str(second)})
    assert changed["numbers"].state == "run" and changed["total"].state == "run"
    assert "the content of its source changed" in changed["numbers"].why and "(2 files)" in changed["numbers"].why
    with pytest.raises(RequestError, match="Stage numbers: There is no file or folder .*absent"):
        plan_for(root, numbers={"folder": str(tmp_path / "absent")})


def test_unchanged_sources_are_not_read_again(root: Folder, tmp_path: Path):
    source = tmp_path / "big"
    source.mkdir()
    path = source / "file.bin"
    path.write_bytes(b"x" * 1000)
    old = time.time_ns() - 10**11
    os.utime(path, ns=(old, old))
    before = plan_for(root, numbers={"folder": str(source)})["numbers"].fingerprint
    # Other content of the same size under the same time stamp goes unseen: proof that nothing was read.
    path.write_bytes(b"y" * 1000)
    os.utime(path, ns=(old, old))
    assert plan_for(root, numbers={"folder": str(source)})["numbers"].fingerprint == before
    os.utime(path, ns=(old + 1, old + 1))
    assert plan_for(root, numbers={"folder": str(source)})["numbers"].fingerprint != before


def test_a_live_lease_means_wait_and_a_cut_off_attempt_is_gone_on_with(root: Folder):
    plan = plan_for(root)
    folder = artifact_folder(root, "numbers", plan["numbers"].fingerprint)
    folder.write_text("shard-000.parquet", "x")
    lease = Lease.take(folder, "other-run")
    waiting = plan_for(root)["numbers"]
    assert waiting.state == "wait" and "run other-run" in waiting.why
    lease.release()
    going_on = plan_for(root)["numbers"]
    assert going_on.state == "run"
    assert going_on.why == "never made before; goes on from an attempt that was cut short (1 file there)"


def test_a_damaged_artifact_is_made_again(root: Folder):
    plan = plan_for(root)
    make_all(root, plan)
    artifact_folder(root, "evens", plan["evens"].fingerprint).remove("value.txt")
    after = plan_for(root)
    assert after["evens"].state == "run" and after["evens"].why == "value.txt is missing from the artifact"
    assert after["total"].state == "cached"


def test_force_from_and_only(root: Folder):
    make_all(root, plan_for(root))
    forced = plan_for(root, Selection(force=("squares",)))
    assert states(forced) == {"numbers": "cached", "squares": "run", "evens": "cached", "total": "cached"}
    assert forced["squares"].why == "asked for anew"
    follow = plan_for(root, Selection(start="squares"))
    assert states(follow) == {"numbers": "cached", "squares": "run", "evens": "cached", "total": "run"}
    last = plan_for(root, Selection(start="evens"))
    assert states(last) == {"numbers": "cached", "squares": "cached", "evens": "run", "total": "run"}
    only = plan_for(root, Selection(only=("evens",)), evens={"seconds": 1})
    assert states(only) == {"numbers": "skipped", "squares": "skipped", "evens": "cached", "total": "skipped"}


def test_only_names_the_inputs_that_are_missing(root: Folder):
    with pytest.raises(MissingInputs, match=r"squares \(needed by total\); evens \(needed by total\)") as caught:
        plan_for(root, Selection(only=("total",)))
    assert set(caught.value.missing) == {"numbers", "squares", "evens"}
    make_all(root, plan_for(root), ["numbers", "squares"])
    with pytest.raises(MissingInputs) as caught:
        plan_for(root, Selection(only=("total",)))
    assert set(caught.value.missing) == {"evens"}
    assert plan_for(root, Selection(only=("evens", "total")))["total"].state == "run"


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(only=("squars",)), "There is no stage 'squars'; did you mean 'squares'?"),
        (Selection(start="totl"), "did you mean 'total'"),
        (Selection(force=("even",)), "did you mean 'evens'"),
        (Selection(only=("evens",), start="evens"), "can't be given together"),
        (Selection(only=("evens",), force=("total",)), "--force names total, which --only leaves out"),
    ],
)
def test_wrong_selections_are_refused(root: Folder, selection: Selection, message: str):
    with pytest.raises(RequestError) as caught:
        plan_for(root, selection)
    assert message in str(caught.value)


def test_graphs_that_can_not_be(root: Folder):
    def stage(name, *needs):
        return Stage(name, "1", lambda *arguments: None, PlainConfig, needs=needs)

    assert [s.name for s in ordered([stage("b", "a"), stage("a"), stage("c", "b")])] == ["a", "b", "c"]
    for stages, message in (
        ([stage("a", "b"), stage("b", "a")], "circle: a -> b -> a"),
        ([stage("a", "x")], "needs 'x'"),
        ([stage("a"), stage("a")], "Two stages"),
        ([stage("runs")], "can't be the name"),
        ([stage("A b")], "can't be the name"),
    ):
        with pytest.raises(RequestError, match=message):
            ordered(stages)
