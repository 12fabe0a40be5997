import pytest

from cluster import record
from tests.stages.ingest.context import make_context


@pytest.mark.parametrize(
    ("points", "rate"),
    [
        ([(0, 0), (10, 20), (20, 60)], 3.0),
        ([(0, 0), (100, 100), (130, 190), (161, 222)], 2.0),  # the last minute
        ([(0, 0), (170, 1), (172, 2), (350, 3), (352, 4)], 2 / 180),  # rare and in pairs: not 1 / 2 s
    ],
)
def test_the_rate_is_of_the_last_minute_or_of_the_last_points(tmp_path, monkeypatch, points, rate):
    written = []
    monkeypatch.setattr(record, "write_progress", lambda root, run_id, progress: written.append(progress))
    context = make_context(tmp_path, "training")
    for now, done in points:
        monkeypatch.setattr("cluster.dag.time.time", lambda now=now: 1e9 + now)
        context.progress(done, 1000)
    assert written[-1].rate == pytest.approx(rate)
