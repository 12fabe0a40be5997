import pyarrow as pa
import pytest

from stages.ablation.rows import BYG
from stages.ablation.stage import SCORES_SCHEMA, ByGAblationConfig, NPEditAblationConfig, Video4EditAblationConfig
from stages.ablation.table import METRICS, agreement, page, results, summary_table


def scores_of(row: str, shares: list[tuple[int, int]], num_items: int = 10) -> list[dict]:
    """Rows of seeds in which so many of the items have success, and so many the rest preserved."""
    return [
        {"row": row, "seed": seed, "item_id": str(index), "edit_type": "color",
         "edit_success": index < success, "preservation": index < kept}
        for seed, (success, kept) in enumerate(shares) for index in range(num_items)
    ]  # fmt: skip


@pytest.fixture
def table() -> pa.Table:
    rows = scores_of("full", [(6, 8), (7, 8), (8, 8)])
    rows += scores_of("no_mse", [(0, 10), (0, 10), (1, 10)])
    rows += scores_of("no_cycle", [(7, 9), (6, 9), (9, 9)])
    config = ByGAblationConfig(rows=("full", "no_cycle", "no_mse"))
    return summary_table(pa.Table.from_pylist(rows, SCORES_SCHEMA), config)


@pytest.mark.parametrize("config", [ByGAblationConfig(), NPEditAblationConfig(), Video4EditAblationConfig()])
def test_each_row_switches_one_field_of_the_method(config):
    assert set(config.rows) == set(config.table.rows)
    settings = getattr(config.train, config.train.method)
    for name, row in config.table.rows.items():
        assert len(row.switches) == (0 if name == "full" else 1)
        for field, value in row.switches.items():
            changed = type(settings).model_validate(settings.model_dump() | {field: value})  # it is a good value
            assert getattr(changed, field) == value != getattr(settings, field)


def test_byg_has_a_switch_for_each_row_of_the_papers_table():
    assert all(value is False for row in BYG.rows.values() for value in row.switches.values()) and len(BYG.rows) == 7


def test_rows_that_the_paper_has_not_are_shown_without_its_figure():
    rows = [{**row, "row": name} for name in ("full", "one_step") for row in scores_of(name, [(6, 8), (7, 8)])]
    config = NPEditAblationConfig(rows=("full", "one_step"))
    found = summary_table(pa.Table.from_pylist(rows, SCORES_SCHEMA), config)
    assert [row["paper_whole_scene_right"] for row in found.to_pylist()] == [6.10, None]
    assert agreement(found, "whole_scene_right") == []
    text = page(found, config)
    assert "one sampling step" in text and "6.1 <small>" in text and "None" not in text


def test_means_are_over_seeds_and_right_needs_both(table):
    full = table.to_pylist()[0]
    assert [full[metric] for metric in METRICS] == pytest.approx([0.7, 0.8, 0.7])
    assert full["edit_success_sd"] == pytest.approx(0.1) and full["preservation_sd"] == 0
    assert (full["num_seeds"], full["num_items"]) == (3, 10)
    assert results(table)["no_mse"]["preservation"] == 1.0


def test_agreement_with_the_paper_needs_more_than_the_seeds_spread(table):
    # the paper: without MSE success falls and preservation rises; without the cycle preservation falls
    assert dict(agreement(table, "edit_success")) == {"no_cycle": "unclear", "no_mse": "agrees"}
    assert dict(agreement(table, "preservation")) == {"no_cycle": "differs", "no_mse": "agrees"}


def test_the_page_shows_our_figures_beside_the_papers(table):
    text = page(table, ByGAblationConfig())
    assert "70.0 <small>&plusmn; 10.0</small>" in text and "0.633 <small>agrees</small>" in text
