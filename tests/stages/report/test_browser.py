"""The gallery as a reader meets it: a real browser opens the page as a file."""

from stages.report.data import gather
from stages.report.page import render_page
from tests.chromium import chromium
from tests.stages.report.example_run import RUN_ID, SHARE_RIGHT, build_run

REPLY = "I said </template><script>document.title = 'run'</script> & <img src=x onerror=\"document.title = 'run'\">"
SET = """((name, value, key = "value") => {
  const field = document.querySelector(`[data-field=${name}]`);
  field[key] = value;
  field.dispatchEvent(new Event("input"));
})"""
SHOWN = "[...document.querySelectorAll('.edit')].filter((e) => e.offsetParent).map((e) => ({...e.dataset}))"
COUNT = "document.querySelector('.count').textContent"


def test_filters_order_and_a_sample_with_hostile_words(tmp_path):
    inputs = build_run(str(tmp_path / "root"), num_items=24)
    data = gather(inputs, str(tmp_path / "root"), RUN_ID, 12)
    data.gallery[0].edits["byg"][1]["judge_sc_text"] = REPLY
    path = tmp_path / "report.html"
    path.write_text(render_page(data, "a title"), encoding="utf-8")
    scores = {(item.item_id, m): row for item in data.gallery for m, (_, row) in item.edits.items()}
    num_all = 12 * len(SHARE_RIGHT)
    with chromium(tmp_path / "chromium") as page:
        page.open(path.as_uri())
        page.wait_for("document.readyState === 'complete'")
        assert page.evaluate(COUNT) == f"12 of 12 shown, {num_all} edits"

        page.evaluate(f"{SET}('method', 'sft')")
        assert {edit["method"] for edit in page.evaluate(SHOWN)} == {"sft"}
        page.evaluate(f"{SET}('low', '5')")
        good = [row for (_, m), row in scores.items() if m == "sft" and (row["judge_overall"] or 0) >= 5]
        assert page.evaluate(COUNT) == f"{len(good)} of 12 shown, {len(good)} edits" and 0 < len(good) < 12
        page.evaluate(f"{SET}('method', ''); {SET}('low', ''); {SET}('apart', true, 'checked')")
        apart = [
            row for row in scores.values() if row["judge_success"] is not None and (
                (row["judge_success"] >= 5) != (row["edit_success"] > 0.5)
                or (row["judge_over_editing"] >= 5) != (row["preservation"] > 0.5)
            )
        ]  # fmt: skip
        assert len(page.evaluate(SHOWN)) == len(apart) > 0
        page.evaluate(f"{SET}('apart', false, 'checked'); {SET}('order', 'gap')")
        largest = page.evaluate(
            "[...document.querySelectorAll('.item')].map((i) => Math.max(...[...i.querySelectorAll('.edit')]"
            ".map((e) => Number(e.dataset.gap))))"
        )
        assert largest == sorted(largest, reverse=True) and largest[0] > largest[-1]
        page.evaluate(f"{SET}('order', '')")
        kind = data.gallery[0].edit_type
        page.evaluate(f"document.querySelector('[data-filter=type][data-value={kind}]').click()")
        num_kind = sum(item.edit_type == kind for item in data.gallery)
        assert page.evaluate(COUNT).startswith(f"{num_kind} of 12 shown")

        page.evaluate("document.querySelector('.edit[data-method=byg] .open').focus()")
        page.press("Enter")
        page.wait_for("document.querySelector('dialog').open")
        assert page.evaluate("document.querySelector('dialog pre').textContent") == REPLY
        assert page.evaluate("document.title") == "a title"
        assert page.evaluate("document.querySelectorAll('dialog img').length") == 2
        assert "Judge overall" in page.evaluate("document.querySelector('dialog .scores').textContent")
        for width in (1280, 390):
            page.resize(width, 844)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.press("Enter")  # the focus is on Close
        page.wait_for("!document.querySelector('dialog').open")
        assert page.evaluate("document.activeElement.className") == "open"
