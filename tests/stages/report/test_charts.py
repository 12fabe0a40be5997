import re
import xml.etree.ElementTree as ElementTree

import pytest

from stages.report.charts import duration, graph, interval_mark, layers, line_chart, nice_ticks
from stages.report.data import Curve, StageNode


def node(name, *needs):
    return StageNode(name, "ran", 12.0, 5, needs)


DIAMOND = [
    node("scenes"), node("ingest", "scenes"), node("caption", "ingest"), node("train", "caption", "scenes"),
    node("pairs"), node("edit", "train", "pairs"), node("report", "edit", "ingest", "scenes"),
]  # fmt: skip


def test_stages_stand_as_late_as_they_can_and_keep_lanes_free():
    assert [[name for name in layer if ">" not in name] for layer in layers(DIAMOND)] == [
        ["scenes"], ["ingest"], ["caption"], ["train", "pairs"], ["edit"], ["report"],
    ]  # fmt: skip
    lanes = [
        name for layer in layers([*DIAMOND, node("map", "scenes"), node("end", "map", "report")]) for name in layer
    ]
    assert [name for name in lanes if ">" in name] == ["scenes>map"] * 4  # what follows from other needs isn't drawn


@pytest.mark.parametrize("downwards", [False, True])
def test_no_two_boxes_lie_over_each_other(downwards):
    svg = graph(DIAMOND, downwards=downwards)
    places = [tuple(map(float, p)) for p in re.findall(r"translate\(([\d.-]+) ([\d.-]+)\)", svg)]
    assert len(places) == len(DIAMOND)
    for index, (x, y) in enumerate(places):
        for other_x, other_y in places[index + 1 :]:
            assert abs(x - other_x) >= 112 or abs(y - other_y) >= 64
    ElementTree.fromstring(svg)


def test_long_names_stand_on_two_lines_and_short_ones_on_one():
    svg = graph([node("encode"), node("customization_benchmark"), node("train_byg", "encode")], downwards=False)
    names = re.findall(r'class="name"[^>]*>([^<]+)<', svg)
    assert names == ["encode", "customization_", "benchmark", "train_byg"]


def test_a_stage_that_needs_what_is_not_shown():
    assert layers([node("edit", "train")]) == [["edit"]]


def test_curves_draw_every_value_within_the_frame():
    curve = Curve("loss/prior", [0.0, 10.0, 20.0], [3.0, float("nan"), -1.0])
    figure = line_chart("loss/prior", {"a": curve})
    svg = ElementTree.fromstring(figure[figure.index("<svg") : figure.index("</figure>")])
    path = svg.find("path").get("d")
    points = [tuple(map(float, point.split())) for point in path[1:].split("L")]
    assert len(points) == 2  # what is not a number is left out
    assert all(0 <= x <= 344 and 0 <= y <= 190 for x, y in points)
    assert points[0][1] < points[1][1]  # 3 stands above -1


def test_long_curves_are_thinned_and_end_at_their_end():
    curve = Curve("loss", [float(i) for i in range(10_000)], [1.0] * 10_000)
    figure = line_chart("loss", {"loss": curve})
    assert len(figure) < 20_000 and 'class="curve faint c0"' in figure


def test_a_curve_of_one_point_and_none():
    assert "<circle" in line_chart("x", {"x": Curve("x", [0.0], [0.0])})
    assert line_chart("x", {"x": Curve("x", [], [])}) == ""


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.037), (-3, 17), (0, 12_345), (5, 5), (0, 0)])
def test_ticks_are_few_and_cover_the_values(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 7


def test_interval_mark_stays_on_its_track():
    assert 'cx="98.00%"' in interval_mark(1.2, 0.9, 1.4, 1.0, "ours")
    assert 'class="bar"' not in interval_mark(0.5, None, None, 1.0, "base")


def test_durations():
    texts = [duration(seconds).replace("\xa0", " ") for seconds in (0.42, 12, 59.7, 200, 7500)]
    assert texts == ["0.4 s", "12 s", "1 min 0 s", "3 min 20 s", "2 h 5 min"]
    assert duration(None) == ""
