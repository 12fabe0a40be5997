import dataclasses
import re

import pytest

from stages.evaluate.discrimination import RANKED_METRICS
from stages.evaluate.summary import LOWER_IS_BETTER
from stages.report import words
from stages.report.data import gather
from stages.report.discrimination import SEES, discrimination
from stages.report.page import render_page
from tests.stages.report.example_run import RUN_ID, build_run


def row(metric, answer, auc, scope="within_items", **more):
    names = {"metric": metric, "oracle_metric": answer, "scope": scope, "auc": auc, "low": auc - 0.05, "high": 1.0}
    counts = dict.fromkeys(("num_right", "num_wrong", "num_pairs", "num_items", "num_clusters"), 1234)
    return names | counts | {"num_unscored": 0, "higher_is_better": True} | more


ROWS = [
    row("l1", "whole_scene_right", 0.4), row("l1", "whole_scene_right", 0.35, "pooled", num_unscored=77),
    row("judge_overall", "whole_scene_right", 0.9), row("judge_overall", "whole_scene_right", 0.85, "pooled"),
    row("tifa", "whole_scene_right", 0.7, "pooled"), row("l1", "preservation", 0.951),
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = str(tmp_path_factory.mktemp("root"))
    return gather(build_run(root, num_items=12), root, RUN_ID, 0)


def test_a_panel_for_each_answer_with_the_best_metric_first(data):
    page = discrimination(dataclasses.replace(data, discrimination=ROWS))
    first, second = page.split('<div class="panel">')[1:]
    order = [first.index(f"<b>{label}</b>") for label in ("Judge overall", "TIFA", "L1 to the source")]
    assert order == sorted(order) and first.startswith("<h3>Exactly right</h3>")
    assert re.findall(r'<span class="value">(.*?)</span>', first) == ["90", "–", "40"]  # TIFA has no pair of one item
    assert re.findall(r'<span class="value">(.*?)</span>', second.split("</section>")[0]) == ["–", "–", "95"]
    assert 'class="dots ours"' in first and first.count('class="beside"') == 2
    assert "source and edit; less is better" in first and "the judge’s in blue" in page
    assert '<td class="number">35.0 (30.0 to 100.0)</td><td class="number">1,234</td>' in page
    assert '<td class="number">77</td>' in page


def test_it_follows_the_table_of_a_run(data):
    page = discrimination(data)
    within = {r["metric"]: r["auc"] for r in data.discrimination
              if (r["oracle_metric"], r["scope"]) == ("whole_scene_right", "within_items")}  # fmt: skip
    best = max(within, key=within.get)
    assert page.index(f"<b>{words.METRICS[best].label.removesuffix(', dB')}</b>") == page.index("<b>")
    assert f'<span class="value">{100 * within[best]:.0f}</span>' in page


def test_without_an_oracle_there_is_no_section(data):
    assert discrimination(dataclasses.replace(data, discrimination=[])) == ""
    without = dataclasses.replace(data, discrimination=[], others=())
    assert 'id="metrics"' not in render_page(without, "x")
    assert "in blue" not in discrimination(dataclasses.replace(data, discrimination=ROWS[:2]))


def test_a_metric_that_the_page_does_not_know_is_shown_by_its_name(data):
    page = discrimination(dataclasses.replace(data, discrimination=[row("new <metric>", "edit_success", 0.6)]))
    assert "<b>new &lt;metric&gt;</b>" in page


def test_every_metric_has_words_and_the_same_direction():
    for metric in RANKED_METRICS:
        assert words.METRICS[metric].higher_is_better == (metric not in LOWER_IS_BETTER)
        assert metric in SEES or metric.startswith("judge_")
