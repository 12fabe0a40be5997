"""A human study: which of two methods' edits people prefer (docs/study.md).

python -m stages.evaluate.study prepare --run runs --methods byg flowedit --out study
python -m stages.evaluate.study tokens study --num 8
python -m stages.evaluate.study serve study
python -m stages.evaluate.study analyse study
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.errors import RequestError, exit_code
from stages.evaluate.study.definition import BETTER, Question, read_study
from stages.evaluate.study.raters import add_raters, free_names, renew

PORT = 8300


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, 1 if something can't be used, 2 if the request was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.evaluate.study",
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("prepare", allow_abbrev=False, help="make a study from a finished run")
    command.add_argument("--run", required=True, metavar="SUMMARY", help="a run's summary.json, or a root of runs")
    command.add_argument("--stage", default="evaluate", help="evaluate_video, ... (default: %(default)s)")
    command.add_argument("--methods", nargs=2, required=True, metavar=("A", "B"), help="win rates are the first's")
    command.add_argument("--out", required=True, type=Path, metavar="STUDY_DIR", help="a folder that isn't there yet")
    command.add_argument("--num-items", type=_count, metavar="N", help="in all, evenly over the edit types (all)")
    command.add_argument("--per-rater", type=_count, metavar="N", help="items that each rater sees (all)")
    command.add_argument(
        "--num-checks", type=int, metavar="N", help="that each rater sees (one for 8 items, 4 or more)"
    )
    command.add_argument(
        "--min-checks-right",
        type=float,
        default=0.8,
        metavar="SHARE",
        help="else a rater's votes don't count (%(default)s)",
    )
    command.add_argument("--question", action="append", metavar="KEY=TEXT", help=f"may be repeated (better={BETTER})")
    command.add_argument("--ties", action="store_true", help="let raters say that there is no difference")
    command.add_argument("--seed", type=int, default=0, help="of items, checks, order and sides (%(default)s)")
    command.add_argument("--title", default="Which edit is better?")

    command = commands.add_parser("tokens", allow_abbrev=False, help="make links for raters; they are shown once")
    command.add_argument("study", type=Path, metavar="STUDY_DIR")
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("--num", type=_count, metavar="N", help="that many raters more")
    which.add_argument("--names", nargs="+", metavar="NAME", help="raters of these names")
    which.add_argument("--renew", metavar="NAME", help="a new link for a rater; the old one ends")
    command.add_argument("--url", default=f"http://127.0.0.1:{PORT}/", help="where raters reach it (%(default)s)")

    command = commands.add_parser("serve", allow_abbrev=False, help="take votes until Ctrl-C")
    command.add_argument("study", type=Path, metavar="STUDY_DIR")
    command.add_argument("--host", default="127.0.0.1", help="(%(default)s)")
    command.add_argument("--port", type=int, default=PORT, help="(%(default)s; 0: any)")

    command = commands.add_parser("analyse", allow_abbrev=False, help="figures from the votes so far")
    command.add_argument("study", type=Path, metavar="STUDY_DIR")
    command.add_argument("--json", action="store_true")

    arguments = parser.parse_args(argv)
    work = {"prepare": _prepare, "tokens": _tokens, "serve": _serve, "analyse": _analyse}[arguments.command]
    return exit_code(lambda: work(arguments))


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _question(text: str) -> Question:
    key, separator, words = text.partition("=")
    try:
        if separator:
            return Question(key=key, text=words)
    except ValueError:
        pass
    raise RequestError(f"--question {text!r} must be KEY=TEXT; a key is of small letters, digits and '_'.")


def _prepare(arguments: argparse.Namespace) -> None:
    from stages.evaluate.study.prepare import prepare

    if not 0 <= arguments.min_checks_right <= 1 or (arguments.num_checks or 0) < 0:
        raise RequestError("--min-checks-right is a share from 0 to 1, and --num-checks isn't negative.")
    study = prepare(
        arguments.run,
        arguments.out,
        stage=arguments.stage,
        methods=tuple(arguments.methods),
        title=arguments.title,
        questions=[_question(text) for text in arguments.question or [f"better={BETTER}"]],
        ties=arguments.ties,
        seed=arguments.seed,
        num_items=arguments.num_items,
        num_per_rater=arguments.per_rater,
        num_checks=arguments.num_checks,
        min_checks_right=arguments.min_checks_right,
    )
    print(
        f"{arguments.out}: {study.methods[0]} against {study.methods[1]} on {len(study.items)} items of "
        f"{study.num_expected} ({study.num_missing} without both edits, {study.num_identical} with equal ones); each "
        f"rater sees {study.num_per_rater} and {len(study.checks)} attention checks."
    )


def _tokens(arguments: argparse.Namespace) -> None:
    read_study(arguments.study)
    if arguments.renew:
        tokens = {arguments.renew: renew(arguments.study, arguments.renew)}
    else:
        tokens = add_raters(arguments.study, arguments.names or free_names(arguments.study, arguments.num))
    for name, token in tokens.items():
        print(f"{name}\t{arguments.url.rstrip('/')}/#token={token}")
    print(
        "These links are shown once; only their hashes are kept. A running server knows them once it is restarted.",
        file=sys.stderr,
    )


def _serve(arguments: argparse.Namespace) -> None:
    from stages.evaluate.study.server import serve

    serve(arguments.study, arguments.host, arguments.port)


def _analyse(arguments: argparse.Namespace) -> None:
    from stages.evaluate.study.analysis import analyse, in_print

    analysis = analyse(arguments.study)
    print(json.dumps(analysis, indent=1, ensure_ascii=False) if arguments.json else in_print(analysis))


if __name__ == "__main__":
    sys.exit(main())
