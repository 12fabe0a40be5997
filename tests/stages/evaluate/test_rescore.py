import json
import math

import pytest

from stages.evaluate.rescore import main
from tests.stages.evaluate.rescoring import has, run

OVERALL, OF_MEANS = "overall_mean_of_geometric_means", "overall_geometric_mean_of_means"


def answer(*scores):
    return {"score": list(scores), "reasoning": "because", "prompt_input": "..."}


def write(folder, answers):
    """{task/method/call: what the file has, or its bytes} as files."""
    for name, content in answers.items():
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return str(folder)


WHOLE = {
    # SC 4 and 9, PQ 9 and 4: overalls 6 and 6
    "color/ours/SC": {"1": answer(4, 8), "2": answer(10, 9)},
    "color/ours/PQ": {"1": answer(9, 9), "2": answer(5, 4)},
    # SC 0, 8 and 1; PQ 5, 2 and 4: overalls 0, 4 and 2
    "style/ours/SC": {"1": answer(0, 10), "2": answer(8, 8), "3": answer(9, 1)},
    "style/ours/PQ": {"1": answer(5, 6), "2": answer(2, 9), "3": answer(4, 4)},
}


def test_every_aggregate_by_hand(tmp_path, capsys):
    code, figures, result, errors = run(capsys, "--viescore", write(tmp_path, WHOLE))
    assert code == 0 and result["complete"] and not errors
    assert has(figures["color", "ours", "sc_mean"], 6.5, 2, 2)
    assert has(figures["color", "ours", "pq_mean"], 6.5, 2, 2)
    assert has(figures["color", "ours", OVERALL], 6.0, 2, 2)
    assert has(figures["color", "ours", OF_MEANS], 6.5, 2, 2)  # sqrt(6.5 * 6.5)
    assert has(figures["style", "ours", "sc_mean"], 3.0, 3, 3)
    assert has(figures["style", "ours", OVERALL], 2.0, 3, 3)
    assert has(figures["style", "ours", OF_MEANS], math.sqrt(3 * 11 / 3), 3, 3)
    assert has(figures["all", "ours", "sc_macro_mean"], (6.5 + 3) / 2, 5, 5)
    assert has(figures["all", "ours", "sc_micro_mean"], (4 + 9 + 0 + 8 + 1) / 5, 5, 5)
    assert has(figures["all", "ours", "overall_macro_mean_of_geometric_means"], (6 + 2) / 2, 5, 5)
    assert has(figures["all", "ours", "overall_micro_mean_of_geometric_means"], (6 + 6 + 0 + 4 + 2) / 5, 5, 5)
    macro_pq = (6.5 + 11 / 3) / 2
    assert has(figures["all", "ours", "overall_geometric_mean_of_macro_means"], math.sqrt(4.75 * macro_pq), 5, 5)
    assert has(figures["all", "ours", "overall_geometric_mean_of_micro_means"], math.sqrt(4.4 * 24 / 5), 5, 5)


def test_every_published_form_of_an_answer_is_read(tmp_path, capsys):
    reply = 'Sure.\n```json\n{"score": [6, 7], "reasoning": "fine"}\n```'
    forms = {
        "color/a/SC": {"1": reply, "2": {"text": reply}, "3": answer(6, 9)},
        "color/a/PQ": [{"key": "1"} | answer(8, 9), {"uid": "2", "text": reply}, {"item_id": 3, "score": [7.5, 9]}],
        "draw/a/SC": {"1": {"score": 7}, "2": {"score": [3]}},  # a call with one question
        "draw/a/PQ": {"1": answer(7, 7), "2": answer(3, 3)},
    }
    code, figures, _, errors = run(capsys, "--viescore", write(tmp_path, forms))
    assert code == 0 and not errors
    assert has(figures["color", "a", "sc_mean"], 6.0, 3, 3)
    assert has(figures["color", "a", "pq_mean"], (8 + 6 + 7.5) / 3, 3, 3)
    assert has(figures["draw", "a", OVERALL], (7 + 3) / 2, 2, 2)


GUESS = {"score": [9], "reasoning": "guess_if_cannot_parse | no idea"}


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "is no JSON (line 1, column 1: Expecting value); its items are unscored."),
        ('{"\u00e4": {"score": [8, 9]}}'.encode("latin-1"), "isn't UTF-8 (byte 2); its items are unscored."),
        ('{"1": {"score": [8, 9]}}'.encode("utf-16"), "isn't UTF-8 (byte 0); its items are unscored."),
        (b'{"1": {"score": [8, %s]}}' % (b"9" * 5000), "can't be read (Exceeds the limit"),
        (b"[" * 100_000, "can't be read (maximum recursion depth exceeded"),
        (b"5", "is neither an object {item: answer} nor a list of answers"),
    ],
)
def test_a_file_of_answers_that_cannot_be_read(tmp_path, capsys, data, told):
    answers = {"color/a/SC": data, "color/a/PQ": {"1": answer(4, 4)}, "color/b/SC": {"1": answer(9, 8)}}
    code, figures, _, errors = run(capsys, "--viescore", write(tmp_path, answers | {"color/b/PQ": {"1": answer(2, 2)}}))
    assert code == 1 and len(errors) == 1 and errors[0].startswith(f"color/a/SC.json: {told}")
    assert has(figures["color", "b", OVERALL], 4.0, 1, 1) and figures["color", "a", OVERALL]["n"] == 0
    assert has(figures["color", "a", "pq_mean"], 4.0, 1, 1)


def test_what_cannot_be_scored_is_named_and_left_out(tmp_path, capsys):
    doubled = b'{"1": {"score": [9, 9]}, "2": {"score": [4, 4]}, "1": {"score": [8, 8]}}'
    answers = {
        "color/a/SC": {
            "1": answer(4, 4), "2": "I'm sorry, but I can't help with that.", "3": answer(11, 3), "4": answer(5, "6"),
            "5": answer(3), "6": GUESS, "7": {"reasoning": "none"}, "8": answer(6, 7), "9": "no score, just words",
        },
        "color/a/PQ": {str(i): answer(4, 4) for i in range(1, 8)} | {"9": answer(4, 4)},
        "color/b/SC": doubled,
        "color/b/PQ": b'{"1": {"score": [9, 9]',
        "color/c/SC": {str(i): answer(1, 2) for i in range(1, 10)},
    }  # fmt: skip
    code, figures, result, errors = run(capsys, "--viescore", write(tmp_path, answers))
    assert code == 1 and not result["complete"]
    assert has(figures["color", "a", "sc_mean"], (4 + 6) / 2, 2, 9)
    assert has(figures["color", "a", "pq_mean"], 4.0, 8, 9)
    assert has(figures["color", "a", OVERALL], 4.0, 1, 9)
    assert has(figures["color", "b", "sc_mean"], 4.0, 1, 9)  # item 1 has two answers
    assert figures["color", "b", OVERALL]["value"] is None and figures["color", "b", OVERALL]["n"] == 0
    assert has(figures["color", "c", "sc_mean"], 1.0, 9, 9)
    for wanted in (
        "color/a/SC.json: 2: the judge refused, so the item is unscored: \"I'm sorry",
        "color/a/SC.json: 3: score [11, 3] is out of the range 0 to 10",
        'color/a/SC.json: 4: score [5, "6"] is not made of numbers',
        "color/a/SC.json: 5: 1 scores where this task's answers have 2",
        "color/a/SC.json: 6: the score is a random guess",
        "color/a/SC.json: 7: the answer has no `score`",
        "color/a/SC.json: 9: the reply has no score that can be read",
        "color/a/PQ.json: 8: there is no answer",
        "color/b/SC.json: 1: there are two answers for this item",
        "color/b/PQ.json: is no JSON (line 1, column 23",
        "color/c/PQ.json: the file is missing",
        "color/b: 3, 4, 5, 6, 7 and 2 more: other methods have answers for it",
    ):
        assert sum(line.startswith(wanted) for line in errors) == 1, (wanted, errors)
    assert len(errors) == 12
    assert [p["key"] for p in result["problems"] if p["file"] == "color/a/SC.json"] == list("2345679")


def test_the_official_policy_is_for_comparison(tmp_path, capsys):
    """Guesses count, fractions are cut off, scores are brought into 0 to 10, an item needs both."""
    answers = {
        "color/a/SC": {"1": GUESS, "2": answer(8.9, 9), "3": answer(12, 11), "4": answer(5, 5)},
        "color/a/PQ": {"1": answer(4, 4), "2": answer(2, 2), "3": answer(10, 10)},
    }
    folder = write(tmp_path, answers)
    _, figures, _, errors = run(capsys, "--viescore", folder, "--failures", "official")
    assert has(figures["color", "a", "sc_mean"], (9 + 8 + 10) / 3, 3, 4)
    assert has(figures["color", "a", OVERALL], (6 + 4 + 10) / 3, 3, 4)
    assert len(errors) == 1 and errors[0].startswith("color/a/PQ.json: 4:")
    _, figures, _, _ = run(capsys, "--viescore", folder)
    assert has(figures["color", "a", OVERALL], math.sqrt(8.9 * 2), 1, 4)


def test_wrong_counts_and_lacking_tasks(tmp_path, capsys):
    folder = write(tmp_path, WHOLE | {"color/other/SC": {"1": answer(1, 1)}, "color/other/PQ": {"1": answer(1, 1)}})
    code, figures, _, errors = run(capsys, "--viescore", folder, "--num-expected", "2")
    assert code == 1 and has(figures["color", "other", OVERALL], 1.0, 1, 2)
    assert "style/ours: has 3 items instead of 2." in errors and "color/other: has 1 items instead of 2." in errors
    assert "style/other: there are no answers, so the method has no figures over all tasks." in errors
    assert ("all", "ours", "sc_macro_mean") in figures and ("all", "other", "sc_macro_mean") not in figures


def test_methods_are_compared_on_the_same_items(tmp_path, capsys):
    answers = {}
    for method, score in {"a": 9, "b": 4, "c": 4}.items():
        for call in ("SC", "PQ"):
            answers[f"color/{method}/{call}"] = {str(i): answer(score, 9) for i in range(6)}
    _, _, result, _ = run(capsys, "--viescore", write(tmp_path, answers))
    rows = {(row["first"], row["second"]): row for row in result["comparisons"]}
    assert rows["a", "b"]["difference"] == 5.0 and rows["a", "b"]["n"] == 6
    assert rows["a", "b"]["p_value"] == 2 / 64 and rows["a", "b"]["p_holm"] == pytest.approx(6 / 64)
    assert rows["b", "c"]["p_value"] == 1.0


def ratings(folder, tables, task="edit"):
    (folder / task).mkdir(parents=True, exist_ok=True)
    for name, text in tables.items():
        (folder / task / f"{name}.tsv").write_text(text.replace(" | ", "\t").replace("\n", "\r\n"), encoding="utf-8")
    return str(folder)


RATERS = {
    # overalls of `a`: rater 1 gives 1, 0.5, 0; rater 2 gives 1, 0.5, 1
    "rater1": "uid | a | b\nx | [1, 1] | [0,0]\ny | [0.5,0.5] | [0,0]\nz | [0, 1] | [0, 0]\n",
    "rater2": "uid | a | b\nz | [1, 1] | [0,0]\nx | [1,1] | [0,0]\ny | [0.5, 0.5] | [0, 0]\n",
}


def test_ratings_by_hand(tmp_path, capsys):
    code, figures, result, errors = run(capsys, "--ratings", ratings(tmp_path, RATERS))
    assert code == 0 and not errors
    assert has(figures["edit", "a", "sc_mean"], (1.5 + 2.5) / 6, 3, 3)
    assert has(figures["edit", "a", OVERALL], (1.5 + 2.5) / 6, 3, 3)
    # the raters' own means are 1/2 and 5/6: deviation 1/6 each, sample deviation sqrt(2)/6
    assert has(figures["edit", "a", "sc_std_over_raters"], 1 / 6, 3, 3)
    assert has(figures["edit", "a", "sc_sem_over_raters"], math.sqrt(2) / 6 / math.sqrt(2), 3, 3)
    # agreement on x and y, none on z: 2/3; shares of 1, 0.5, 0 are 3/6, 2/6, 1/6, by chance 14/36;
    # (24/36 - 14/36) / (22/36)
    assert has(figures["edit", "a", "sc_fleiss_kappa"], 10 / 22, 3, 3)
    # ranks 3 2 1 and 2.5 1 2.5: Pearson of the ranks is -0.0/..., that is 0
    assert has(figures["edit", "a", "sc_spearman_between_raters"], 0.0, 3, 3)
    assert figures["edit", "b", "sc_fleiss_kappa"]["value"] is None  # all ratings alike
    (row,) = result["comparisons"]
    assert (row["first"], row["second"], row["difference"]) == ("a", "b", pytest.approx(4 / 6))


def test_raters_are_held_against_a_judge(tmp_path, capsys):
    judge = {"edit/a/SC": {"x": answer(9, 9), "y": answer(5, 5), "z": answer(7, 7)}}
    judge["edit/a/PQ"] = judge["edit/a/SC"]
    arguments = ["--ratings", ratings(tmp_path / "r", RATERS), "--viescore", write(tmp_path / "v", judge)]
    code, figures, _, _ = run(capsys, *arguments)
    # the raters' mean SC is 1, 0.5, 0.5; the judge's 9, 5, 7: ranks 3 1.5 1.5 and 3 1 2, rho = 1.5 / sqrt(1.5 * 2)
    rho = 1.5 / math.sqrt(3)
    assert code == 0 and has(figures["edit", "a", "sc_spearman_with_judge"], rho, 3, 3)
    assert has(figures["edit", "all", "sc_spearman_with_judge_official"], math.tanh(rho), 1, 1)
    assert ("edit", "b", "sc_spearman_with_judge") not in figures


def test_bad_ratings_are_named_and_left_out(tmp_path, capsys):
    tables = {
        "rater1": "uid | a | b\nw | [1, 1] | [1, 1]\nx | [1, 1] | [2, 0]\ny | [1] | [0,0]\nz | [0, 1] | good\n",
        "rater2": "uid | a\nw | [1, 1]\nx | [1, 1]\nx | [0, 0]\nz | [0, 1] | [1, 1]\n",
        "rater3": "item | a\nx | [1, 1]\n",
    }
    code, figures, _, errors = run(capsys, "--ratings", ratings(tmp_path, tables))
    assert code == 1
    assert has(figures["edit", "a", "sc_mean"], 1.0, 1, 4)
    assert has(figures["edit", "b", "sc_mean"], (1 + 0) / 2, 2, 4)
    assert sorted(line.split(", so")[0] for line in errors) == [
        "edit/rater1.tsv: x, b: '[2, 0]' is out of the range 0 to 1 (--max-rating)",
        "edit/rater1.tsv: y, a: '[1]' is not [SC, PQ], two numbers",
        "edit/rater1.tsv: z, b: 'good' is not [SC, PQ], two numbers",
        "edit/rater2.tsv: has no column 'b'",
        "edit/rater2.tsv: x: there are two rows for this item",
        "edit/rater2.tsv: y: another rater has rated this item, this one has no row.",
        "edit/rater2.tsv: z: has 2 ratings for 1 methods",
        "edit/rater3.tsv: its first line should be `uid` and then one column for each method, each with its own name, "
        "between tabs; the rater is left out.",
    ]
    assert run(capsys, "--ratings", str(tmp_path), "--max-rating", "2")[1]["edit", "b", "sc_mean"]["n"] == 3


def test_a_table_of_ratings_that_cannot_be_read(tmp_path, capsys):
    folder = ratings(tmp_path, {"rater1": "uid | a\nx | [1, 1]\ny | [0, 1]\n", "deep": f"uid | a\nx | {'[' * 5000}\n"})
    (tmp_path / "edit" / "rater2.tsv").write_bytes("uid\t\u00e4\nx\t[1, 1]\n".encode("latin-1"))
    code, figures, _, errors = run(capsys, "--ratings", folder)
    assert code == 1 and figures["edit", "a", "sc_mean"]["n_expected"] == 2
    assert sorted(errors) == [
        f"edit/deep.tsv: x, a: {'[' * 60!r} is not [SC, PQ], two numbers, so the item is unscored.",
        "edit/deep.tsv: y: another rater has rated this item, this one has no row.",
        "edit/rater2.tsv: isn't UTF-8 (byte 4); the rater is left out. Save it as UTF-8.",
    ]


def test_files_without_any_score_are_named(tmp_path, capsys):
    tables = {"rater1": "uid | a\n", "rater2": "uid | a\n"}
    code, figures, _, errors = run(capsys, "--ratings", ratings(tmp_path / "r", tables))
    assert code == 1 and figures["edit", "a", "sc_mean"]["value"] is None
    assert errors == ["edit/rater1.tsv: has no ratings.", "edit/rater2.tsv: has no ratings."]
    empty = write(tmp_path / "v", {"color/a/SC": {}, "color/a/PQ": []})
    code, figures, _, errors = run(capsys, "--viescore", empty)
    assert code == 1 and figures["color", "a", "sc_mean"]["value"] is None
    assert errors == ["color/a/SC.json: has no answers.", "color/a/PQ.json: has no answers."]


def test_too_few_sources_for_a_small_p_are_said(tmp_path, capsys):
    answers = {}
    for method, score in {"a": 9, "b": 4, "c": 1}.items():
        for call in ("SC", "PQ"):
            answers[f"color/{method}/{call}"] = {str(i): answer(score, score) for i in range(5)}
    folder = write(tmp_path, answers)
    _, _, result, _ = run(capsys, "--viescore", folder)
    assert {(c["p_value"], c["p_floor"], c["p_holm"]) for c in result["comparisons"]} == {(1 / 16, 1 / 16, 3 / 16)}
    main(["--viescore", folder])
    assert capsys.readouterr().out.count("p 0.0625, 0.1875 (so few sources allow no smaller p)  n 5") == 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "Give --run"),
        (["--run", "a", "--viescore", "b"], 2, "--run stands alone"),
        (["--run", "{}/none.json"], 2, "no such file"),
        (["--run", "{}/text.json"], 2, "is no run's summary"),
        (["--run", "{}/odd.json"], 2, "is no run's summary"),
        (["--viescore", "{}/none"], 2, "no such folder"),
        (["--viescore", "{}"], 1, "no answers here. Wanted are <task>/<method>/SC.json"),
        (["--ratings", "{}"], 1, "no ratings here. Wanted are tables <task>/*.tsv"),
        (["--viescore", "{}", "--num-expected", "0"], 2, "must be above 0"),
    ],
)
def test_wrong_requests(tmp_path, capsys, arguments, code, message):
    (tmp_path / "text.json").write_text("[1]")
    (tmp_path / "odd.json").write_text('{"stages": {"evaluate": "ran"}}')
    assert main([argument.format(tmp_path) for argument in arguments]) == code
    captured = capsys.readouterr()
    assert message in captured.err and len(captured.err.splitlines()) == 1


def test_text_for_people(tmp_path, capsys):
    folder = write(tmp_path, {name.replace("color", "background_change"): a for name, a in WHOLE.items()})
    assert main(["--viescore", folder, "--published", "gedit-bench"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "background_change / ours"
    assert lines[1].split() == ["sc_mean", "6.5000", "2", "of", "2", "(4.0000", "to", "9.0000)"]
    assert any("background_change / ByG: overall_mean_of_geometric_means 6.69" in line for line in lines)
    assert not any("style / " in line for line in lines[lines.index("Published") :])
