"""Every figure again, from tables alone: of a finished run, of somebody's raw VIEScore answers, of people's ratings.

    python -m stages.evaluate.rescore --run <root>/runs/<run id>/summary.json
    python -m stages.evaluate.rescore --viescore answers [--failures official]
    python -m stages.evaluate.rescore --ratings ratings [--viescore answers]

It prints, per task and method, each aggregate with its name and n of n expected; `--json` the same as one object. What
could not be scored is said in one line each on the error output. Exit code 0: all was scored, and of a run all came out
as the run wrote it; 1: something was not; 2: the request was wrong.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import get_args

from cluster.errors import FAILED, OK, RequestError, exit_code
from stages.evaluate.answers import Failures, read_answers
from stages.evaluate.figures import Figure, Rescored, problem_lines
from stages.evaluate.published import BENCHMARKS, PublishedFigure, beside, read_published
from stages.evaluate.ratings import ratings_figures, read_ratings
from stages.evaluate.recompute import recompute_run
from stages.evaluate.viescore_figures import viescore_figures

LEVEL = 0.05  # a corrected p-value from here on says nothing


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: _rescore(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stages.evaluate.rescore", description=__doc__.split("\n\n")[0])
    parser.add_argument("--run", metavar="SUMMARY", help="a finished run's summary.json (or latest.json)")
    parser.add_argument("--viescore", metavar="DIR", help="raw answers, <task>/<method>/SC.json and PQ.json")
    parser.add_argument("--ratings", metavar="DIR", help="people's ratings, <task>/*.tsv, one table for each rater")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.add_argument(
        "--failures", choices=get_args(Failures), default="unscored",
        help="what becomes of an unreadable answer; official, for comparison only: VIEScore's own analysis",
    )  # fmt: skip
    parser.add_argument("--num-expected", type=int, metavar="N", help="items that every task of --viescore must have")
    parser.add_argument("--max-rating", type=float, default=1.0, metavar="X", help="best rating of --ratings (1)")
    parser.add_argument(
        "--published", choices=BENCHMARKS, metavar="BENCHMARK",
        help=f"shows published figures of the same task and aggregate beside: {', '.join(BENCHMARKS)}",
    )  # fmt: skip
    return parser


def _rescore(args: argparse.Namespace) -> int:
    if args.run and (args.viescore or args.ratings):
        raise RequestError("--run stands alone; --viescore and --ratings can be given together.")
    if not (args.run or args.viescore or args.ratings):
        raise RequestError("Give --run SUMMARY, --viescore DIR or --ratings DIR.")
    if (args.num_expected is not None and args.num_expected < 1) or not args.max_rating > 0:
        raise RequestError("--num-expected and --max-rating must be above 0.")
    if args.run:
        result = recompute_run(args.run)
    else:
        result = _from_tables(args)
    published = beside(result.figures, read_published(), args.published) if args.published else []
    if args.json:
        rows = [figure.model_dump(mode="json") for figure in published]
        print(
            json.dumps(result.to_json() | ({"published": rows} if args.published else {}), ensure_ascii=False, indent=1)
        )
    else:
        print("\n".join([*_figure_lines(result.figures), *_comparison_lines(result), *_published_lines(published)]))
        print("\n".join(result.notes), end="\n" if result.notes else "")
    for line in problem_lines(result.problems):
        print(line, file=sys.stderr)
    return FAILED if result.problems else OK


def _from_tables(args: argparse.Namespace) -> Rescored:
    answers, problems = read_answers(_folder(args.viescore), args.failures) if args.viescore else ([], [])
    if not args.ratings:
        result = viescore_figures(answers, num_expected=args.num_expected)
        result.problems = problems + result.problems
        return result
    ratings, faults = read_ratings(_folder(args.ratings), args.max_rating)
    result = ratings_figures(ratings, answers)
    result.problems = problems + faults + result.problems
    return result


def _folder(path: str) -> pathlib.Path:
    folder = pathlib.Path(path).expanduser().resolve()
    if not folder.is_dir():
        raise RequestError(f"{path}: there is no such folder.")
    return folder


def _figure_lines(figures: Sequence[Figure]) -> list[str]:
    """Figures by task and method in the order of their first mention."""
    groups: dict[tuple[str, str], list[Figure]] = {}
    for figure in figures:
        groups.setdefault((figure.task, figure.method), []).append(figure)
    lines = []
    for (task, method), group in groups.items():
        lines.append(f"{task} / {method}")
        for f in group:
            name = f.name if f.category == "all" else f"{f.name} [{f.category}]"
            value = "     –" if f.value is None else f"{f.value:.4f}"
            interval = f"  ({f.low:.4f} to {f.high:.4f})" if f.low is not None and f.high is not None else ""
            lines.append(f"  {name:48} {value:>9}  {f.n} of {f.n_expected}{interval}")
    return lines


def _comparison_lines(result: Rescored) -> list[str]:
    lines = ["Differences on the same items (p by permutation; p corrected after Holm)"] if result.comparisons else []
    for c in result.comparisons:
        interval = f" ({c.low:+.4f} to {c.high:+.4f})" if c.low is not None and c.high is not None else ""
        pair = f"{c.task}: {c.first} - {c.second}, {c.name}"
        few = c.p_value <= c.p_floor and c.p_holm >= LEVEL
        floor = " (so few sources allow no smaller p)" if few else ""
        lines.append(f"  {pair}: {c.difference:+.4f}{interval}  p {c.p_value:.4f}, {c.p_holm:.4f}{floor}  n {c.n}")
    return lines


def _published_lines(published: Sequence[PublishedFigure]) -> list[str]:
    lines = ["Published"] if published else []
    for f in published:
        erratum = f"  ! {f.erratum}" if f.erratum else ""
        lines.append(f"  {f.task} / {f.method}: {f.name} {f.value:g}  [{f.source}]{erratum}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
