"""The edit stage: every method over every item of a benchmark, as one table of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cluster.artifacts import Artifact
from cluster.dag import Context
from cluster.errors import UserError
from cluster.folder import Folder
from cluster.shards import name_shards, run_shards
from stages.edit.benchmark import check_captions, given_benchmark, item_ids_of
from stages.edit.editors import ADAPTER_STAGES, CAPTIONS, VIDEO_METHODS
from stages.edit.folders import Found, find_edits
from stages.edit.pipelines import pipeline_class
from stages.edit.settings import EditSettings
from stages.edit.shard import EditShard, Task, Trained
from stages.edit.strength import TUNED, chosen_strengths, compare_strengths
from stages.train.backbones.models import resolved_model
from stages.train.methods.settings import SETTINGS


def edit_images(inputs: Mapping[str, Artifact], config: EditSettings, context: Context) -> None:
    """Writes `edits/<method>/*.parquet`, a row for each item and method; of clips `image` is the last frame.

    Needs the artifact `benchmark` or `ingest_benchmark`; for each trained method the stage that ADAPTER_STAGES names;
    `validation` if a strength of SDEdit or a start of FlowEdit is to be chosen: the comparison is left in
    `strengths.parquet`. To edit clips they are `video_benchmark` and `video_validation`. An item that somebody else's
    editor gave no usable picture of has the reason instead.

    Raises:
        UserError: an artifact that a method needs is missing or of another model; an item is doubled,
            unreadable, without a caption that a method needs, or of a size that the model can't work on; a model, an
            adapter or a folder of pictures can't be loaded; there is no method.
    """
    if not config.all_methods:
        raise UserError(f"{context.stage}: no method is named. Give some with --set '{context.stage}.methods=[...]'.")
    given = given_benchmark(inputs, config.prefix)
    benchmark = given.folder
    trained = _trained(inputs, config, context.stage)
    times = _few_step_times(inputs, config)
    for name, settings in config.other_pipelines.items():
        pipeline_class(name, settings)  # a wrong one shows now, not when its turn comes
    item_ids = item_ids_of(benchmark)
    context.log_input(given.stage, given.fingerprint, len(item_ids))
    captioned = {method: CAPTIONS[method] for method in config.methods if method in CAPTIONS}
    check_captions(benchmark, captioned, context.stage)
    length = given.manifest.config.get("num_frames", config.clip_length)  # of the sources, where these are clips
    found = {
        name: find_edits(f"{context.stage}.folders.{name}.path", one, item_ids, length)
        for name, one in config.folders.items()
    }
    for name, edits in found.items():
        _tell(f"{context.stage}.folders.{name}", edits, len(item_ids), context)
    strengths = {method: getattr(config, TUNED[method])[0] for method in TUNED if method in config.methods}

    def tasks(methods: Sequence[str]) -> dict[str, Task]:
        return {
            name: Task(benchmark, tuple(ids), method, strengths.get(method, 1.0), times=times.get(method))
            for method in methods
            for name, ids in name_shards(item_ids, config.shard_size, prefix=f"edits/{method}/").items()
        }

    tuning = _tuning_tasks(inputs, config, context.stage)
    if tuning:
        waiting = {task.method for task in tuning.values()}
        others = [method for method in config.all_methods if method not in waiting]
        _run(tasks(others) | tuning, trained, found, config, context)
        compared = {name: (task.method, task.strength) for name, task in tuning.items()}
        table = compare_strengths(context.out, compared)
        context.out.write_table("strengths.parquet", table)
        strengths |= chosen_strengths(table.to_pylist())
    _run(tasks(config.all_methods), trained, found, config, context)
    context.set_figures({TUNED[method].removesuffix("s"): strength for method, strength in strengths.items()})
    context.set_rows(len(item_ids) * len(config.all_methods))


def _tuning_tasks(inputs: Mapping[str, Artifact], config: EditSettings, stage: str) -> dict[str, Task]:
    """Every method with more than one strength, at each of them over the validation split."""
    tasks = {}
    for method, strengths in config.to_choose.items():
        if config.prefix + "validation" not in inputs:
            raise UserError(
                f"{stage}: several {TUNED[method]} are given, and no validation split to choose one by. Give one, "
                f"for example --set '{stage}.{TUNED[method]}=[0.7]'."
            )
        validation = inputs[config.prefix + "validation"].folder
        item_ids = item_ids_of(validation)
        for strength in strengths:
            prefix = f"strengths/{method}/{strength:g}/"
            for name, ids in name_shards(item_ids, config.shard_size, prefix=prefix).items():
                tasks[name] = Task(validation, tuple(ids), method, strength, tuning=True)
    return tasks


def _tell(setting: str, found: Found, num_items: int, context: Context) -> None:
    """Says at once what of somebody else's edits won't be scored."""
    noun = found.noun
    if missing := num_items - len(found.files):
        context.incident(f"{setting}: {missing} of {num_items} items have no {noun}; unscored.")
    if doubled := {item_id: files for item_id, files in found.files.items() if len(files) > 1}:
        files = " and ".join(next(iter(doubled.values()))[:2])
        context.incident(f"{setting}: {len(doubled)} items have two {noun}s ({files}); unscored.")
    if found.unknown:
        context.incident(f"{setting}: {len(found.unknown)} {noun}s belong to no item, such as {found.unknown[0]}.")


def _run(
    shards: Mapping[str, Task],
    trained: Mapping[str, Trained],
    found: Mapping[str, Found],
    config: EditSettings,
    context: Context,
) -> None:
    run_shards(
        list(shards),
        EditShard(shards, trained, config, context.out, context.stage, found),
        context=context,
        num_workers=config.num_workers,
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus,
        total=sum(len(task.item_ids) for task in shards.values()),
        unit="edits",
    )


def _trained(inputs: Mapping[str, Artifact], config: EditSettings, stage: str) -> dict[str, Trained]:
    """What was trained for each trained method, and the adapters that were here already."""
    found = {}
    for name, path in config.adapters.items():
        found[name] = Trained(Folder(resolved_model(path)), False)
        if not found[name].folder.list(".safetensors"):
            raise UserError(
                f"{stage}.adapters.{name}: {path} is no folder with a LoRA. Name an `adapter/` as a training leaves it."
            )
    for method, training in ADAPTER_STAGES.items():
        if method in config.methods:
            if training not in inputs:
                raise UserError(f"{stage}: method {method} needs stage {training}; add it or drop the method.")
            trained = inputs[training].manifest.config
            for setting in _shared(method, config):
                *within, field = setting.split(".")
                ours = getattr(config.video if within else config, field)
                if field in trained and trained[field] != ours:
                    raise UserError(
                        f"{stage}: {training} was trained with {field}={trained[field]}, {stage} has {ours}. "
                        f"Set --set {stage}.{setting}={trained[field]}."
                    )
            is_whole = inputs[training].folder.exists("transformer/config.json")
            folder = inputs[training].folder.sub("transformer" if is_whole else "adapter")
            found[method] = Trained(folder, is_whole)
    return found


def _shared(method: str, config: EditSettings) -> tuple[str, ...]:
    """The settings that the method's training must have had too."""
    if method in VIDEO_METHODS:
        return ("video.model", "video.num_frames")
    return ("model", "num_frames") if config.clip_length > 1 else ("model", "reference_positions")


def _few_step_times(inputs: Mapping[str, Artifact], config: EditSettings) -> dict[str, tuple[float, ...]]:
    """The times of every trained method that samples at a few alone, as its training has them."""
    times = {}
    for method, stage in ADAPTER_STAGES.items():
        if method in config.methods:
            trained = inputs[stage].manifest.config
            name = trained.get("method", method)
            if name in SETTINGS and (few := SETTINGS[name].model_validate(trained.get(name, {})).few_step_times):
                times[method] = few
    return times
