from pathlib import Path

import pytest
import yaml

from cluster.dag import LABELS, Resources
from cluster.session import LOCAL_LABELS

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def config() -> dict:
    return yaml.safe_load((REPOSITORY / "ray_cluster.yaml").read_text())


def test_it_is_valid_by_rays_own_schema(config):
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["head_node_type"] == "head"
    with pytest.raises(Exception, match="min_worker"):
        broken = prepared["available_node_types"]["head"] | {"min_worker": 1}
        validate_config(prepared | {"available_node_types": {"head": broken}})


def test_both_groups_grow_from_zero_and_carry_the_labels(config):
    groups = config["available_node_types"]
    for label in LABELS:
        group = groups[f"{label}_worker"]
        assert group["min_workers"] == 0 and group["max_workers"] > 0
        assert group["resources"][label] >= 1 and group["resources"]["GPU"] >= 1
        assert label not in groups["head"]["resources"]


def test_stages_can_ask_only_for_what_the_groups_and_one_machine_have():
    assert set(LOCAL_LABELS) == set(LABELS)
    assert [Resources(label=label).label for label in LABELS] == list(LABELS)
    with pytest.raises(ValueError, match="no group of machines for the label 'gpu'"):
        Resources(label="gpu")
