from pathlib import Path
from typing import Literal

import pytest

from cluster.config import (
    Profile,
    StageConfig,
    apply_settings,
    build_configs,
    find_profile,
    identity,
    read_profile,
    runtime,
)
from cluster.errors import RequestError


class Sampler(StageConfig):
    num_steps: int = 8
    batch_size: int = runtime(4)


class EditConfig(StageConfig):
    lr: float = 1e-4
    kind: Literal["gray", "graph"] = "gray"
    num_workers: int = runtime(2, ge=1)
    sampler: Sampler = Sampler()
    samplers: tuple[Sampler, ...] = ()


MODELS = {"edit": EditConfig, "encode": StageConfig}


def refused(values):
    with pytest.raises(RequestError) as caught:
        build_configs(MODELS, values)
    return str(caught.value)


def test_identity_leaves_runtime_fields_out_at_every_depth():
    config = EditConfig(samplers=(Sampler(batch_size=1), Sampler(num_steps=3)))
    assert identity(config) == {
        "lr": 1e-4,
        "kind": "gray",
        "sampler": {"num_steps": 8},
        "samplers": [{"num_steps": 8}, {"num_steps": 3}],
    }
    assert identity(config) == identity(config.model_copy(update={"num_workers": 9, "sampler": Sampler(batch_size=9)}))


def test_values_are_checked_by_name_with_the_nearest_right_one():
    assert refused({"edot": {}}) == "There is no stage 'edot'; did you mean 'edit'?"
    assert refused({"edit": {"num_worker": 1}}) == "There is no field edit.num_worker; did you mean 'num_workers'?"
    assert "edit.sampler.num_stps; did you mean 'num_steps'?" in refused({"edit": {"sampler": {"num_stps": 1}}})
    assert refused({"edit": {"num_workers": 0}}) == "edit.num_workers = 0: input should be greater than or equal to 1"
    assert refused({"edit": {"lr": "fast"}}).startswith("edit.lr = 'fast': input should be a valid number")
    message = refused({"edit": {"kind": "grey"}})
    assert message == "edit.kind = 'grey': input should be 'gray' or 'graph'; did you mean 'gray'?"


def test_every_problem_is_named_at_once():
    assert len(refused({"edit": {"lr": "x", "kind": "y"}, "nope": {}}).splitlines()) == 3


def test_settings_reach_nested_fields_and_leave_the_profile_alone():
    profile = {"edit": {"sampler": {"num_steps": 4}}}
    settings = [
        "edit.sampler.batch_size=2",
        "edit.lr=1e-3",
        "edit.kind=graph",
        "edit.samplers=[{num_steps: 1}]",
    ]
    config = build_configs(MODELS, apply_settings(profile, settings))["edit"]
    assert config.sampler == Sampler(num_steps=4, batch_size=2)
    assert (config.lr, config.kind, config.samplers) == (1e-3, "graph", (Sampler(num_steps=1),))
    assert profile == {"edit": {"sampler": {"num_steps": 4}}}


@pytest.mark.parametrize("setting", ["edit.lr", "lr=3", "edit.=3", ".lr=3", "=3"])
def test_a_setting_of_another_form_is_refused(setting):
    with pytest.raises(RequestError, match="stage.field=value"):
        apply_settings({}, [setting])


def test_a_setting_below_a_plain_value_is_refused():
    with pytest.raises(RequestError, match="edit.lr is 1, it has no fields"):
        apply_settings({"edit": {"lr": 1}}, ["edit.lr.value=2"])


def test_profiles_by_name_and_by_path(tmp_path: Path):
    (tmp_path / "starter.yaml").write_text("_about: what it is for\nedit:\n  lr: 2\nencode:\n")
    found = find_profile("starter", tmp_path)
    assert read_profile(found) == Profile({"edit": {"lr": 2}, "encode": {}})
    assert find_profile(str(found), Path("/nowhere")) == found
    with pytest.raises(RequestError, match="did you mean 'starter'"):
        find_profile("startr", tmp_path)
    with pytest.raises(RequestError, match="no profile file"):
        find_profile(str(tmp_path / "absent.yaml"), tmp_path)


def test_a_profile_names_its_targets(tmp_path: Path):
    path = tmp_path / "ablation.yaml"
    path.write_text("_targets: [total]\nedit: {lr: 2}\n")
    assert read_profile(path) == Profile({"edit": {"lr": 2}}, ("total",))


@pytest.mark.parametrize("text", ["a: [", "- a\n- b", "edit: 3", "\x00", "_targets: total", "_targets: [1]"])
def test_a_malformed_profile_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RequestError, match="bad.yaml"):
        read_profile(path)
