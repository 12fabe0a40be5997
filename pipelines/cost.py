"""What a data engine will cost, before it is run: a few rows are really asked about, the rest is arithmetic.

    python pipelines/cost.py --profile starter --stage caption

Nothing of it stays. The rows are asked about as the stage will ask about them, by the model that the profile names.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python pipelines/cost.py` sees only pipelines/

from cluster.alone import alone
from cluster.config import apply_settings, build_configs, find_profile, nearest, read_profile
from cluster.dag import Stage, leading_to, narrowed
from cluster.errors import RequestError, exit_code
from cluster.folder import Folder
from cluster.plan import MissingInputs, Planned, Selection, make_plan
from pipelines.cli import PROFILES, command_for
from pipelines.full import STAGES
from stages.caption.cost import choose_keys, estimate, show
from stages.caption.engines import ENGINES
from stages.caption.trial import opened, sample_rows, try_rows


def main(argv: Sequence[str] | None = None, *, stages: Sequence[Stage] = STAGES, profiles: Path = PROFILES) -> int:
    """Prints the estimate. Exit codes as those of a pipeline."""
    arguments = _parser().parse_args(argv)
    return exit_code(lambda: print(_cost(arguments, stages, profiles)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", required=True, help="a YAML file, or a name in pipelines/profiles/")
    parser.add_argument("--stage", required=True, choices=ENGINES, help="the data engine's")
    parser.add_argument(
        "--root", default="./runs", help="where what it reads is: a path or an fsspec URL (%(default)s)"
    )
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="STAGE.FIELD=VALUE", dest="settings")
    parser.add_argument("--num-rows", type=_positive(int), default=20, help="to ask about (%(default)s)")
    parser.add_argument("--tokens-per-second", type=_positive(float), help="instead of the sample's: prompt and answer")
    parser.add_argument("--price-per-gpu-hour", type=_positive(float))
    return parser


def _positive(kind: type) -> type:
    def read(text: str) -> float:
        if (value := kind(text)) <= 0:
            raise ValueError
        return value

    read.__name__ = f"positive {kind.__name__}"  # what argparse calls a bad value
    return read


def _cost(arguments: argparse.Namespace, stages: Sequence[Stage], profiles: Path) -> str:
    planned, inputs = _inputs(arguments, stages, profiles)
    name, config = arguments.stage, planned.config
    with alone(name) as context:
        whole = ENGINES[name].asks(inputs, config, context)
        keys = choose_keys(whole.keys, arguments.num_rows, config.seed)
        sampled = sample_rows(whole, config.shard_size, keys)
        one = config.model_copy(update={"engine": config.engine.model_copy(update={"num_engines": 1})})
        with opened(one, context) as engine:
            trial = try_rows(sampled, config, context, engine)
        found = estimate(trial, whole, sampled, config, Folder(context.root).sub("measured"))
    num_gpus, num_engines = config.engine.tensor_parallel_size, config.engine.num_engines
    return show(found, whole.unit, num_gpus, num_engines, arguments.tokens_per_second, arguments.price_per_gpu_hour)


def _inputs(arguments: argparse.Namespace, stages: Sequence[Stage], profiles: Path) -> tuple[Planned, dict]:
    """The stage as it would be run, and the artifacts that it reads. Raises RequestError if one isn't there."""
    values = apply_settings(read_profile(find_profile(arguments.profile, profiles)).values, arguments.settings)
    known = [stage.name for stage in stages]
    if unknown := [name for name in values if name not in known]:
        raise RequestError(f"There is no stage {unknown[0]!r}; {nearest(unknown[0], known)}")
    stages = leading_to(stages, (arguments.stage,))
    models = {stage.name: stage.config for stage in stages}
    configs = build_configs(models, {name: fields for name, fields in values.items() if name in models})
    stages = leading_to(narrowed(stages, configs), (arguments.stage,))
    root, only = Folder(arguments.root), Selection(only=(arguments.stage,))
    script = str(Path(__file__).with_name("full.py"))
    try:
        plan = {planned.stage.name: planned for planned in make_plan(stages, configs, root, only)}
    except MissingInputs as error:
        raise RequestError(f"{error} This makes them:\n  {command_for(arguments, error.missing, script)}") from None
    planned = plan[arguments.stage]
    inputs = {need: plan[need].artifact for need in planned.stage.needs}
    if missing := [need for need, artifact in inputs.items() if artifact is None]:
        command = command_for(arguments, missing, script)
        raise RequestError(
            f"{', '.join(missing)}, which {arguments.stage} reads, isn't there: make it anew by\n  {command}"
        )
    return planned, inputs


if __name__ == "__main__":
    raise SystemExit(main())
