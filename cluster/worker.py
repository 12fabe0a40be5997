"""What runs in a stage's own process: its function, its log, and the commit of what it made."""

import contextlib
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import record
from cluster.artifacts import Artifact, commit
from cluster.config import StageConfig
from cluster.dag import Context
from cluster.disk import disk_full
from cluster.errors import Cancelled, UserError
from cluster.folder import Folder
from cluster.lease import holder


@dataclass(frozen=True)
class Outcome:
    """How a stage's task ended. kind: ok, user (the user's to put right), fault, system (worth a second try),
    cancelled.
    """

    kind: str
    error: str | None = None


def execute(
    run: Callable[..., None],
    config: StageConfig,
    inputs: Mapping[str, Artifact],
    context: Context,
    manifest: Mapping[str, Any],
) -> Outcome:
    """Runs a stage's function and commits the artifact; `manifest` has those fields that the driver knows."""
    started = time.time()
    name = f"logs/{context.stage}.log"
    with _captured(record.run_folder(Folder(context.root), context.run_id), name) as log:
        try:
            context.scratch.mkdir(parents=True, exist_ok=True)
            run(inputs, config, context)
            _require_lease(context)
            commit(
                context.out,
                **manifest,
                rows=context.rows,
                figures=context.figures,
                mlflow_run_id=context.mlflow_run_id,
                seconds=time.time() - started,
            )
            shutil.rmtree(context.scratch, ignore_errors=True)
            return Outcome("ok")
        except (KeyboardInterrupt, Cancelled):
            return Outcome("cancelled")
        except SystemExit as error:
            return Outcome("fault", f"The stage's code called exit({error.code}).")
        except Exception as error:
            with contextlib.suppress(OSError):  # the log may be on the disk that is full
                traceback.print_exc()
            return _outcome(error, log, context.root)


def _require_lease(context: Context) -> None:
    current = holder(context.out)
    if current is None or current.owner != context.lease_owner:
        raise Cancelled(f"Stage {context.stage} lost its lease before it could commit.")


def _outcome(error: BaseException, log: str, root: str) -> Outcome:
    import ray.exceptions as exceptions

    while isinstance(error, exceptions.RayTaskError):  # raised in an actor of the stage: what counts is its cause
        error = error.cause
    if isinstance(error, exceptions.TaskCancelledError | Cancelled):
        return Outcome("cancelled")
    if isinstance(error, UserError):
        return Outcome("user", str(error))
    if full := disk_full(error, root):
        return Outcome("user", str(full))
    text = " ".join(f"{type(error).__name__}: {error}".split())
    text = f"{text if len(text) <= 600 else text[:600] + '...'} (full traceback: {log})"
    return Outcome("system" if is_system_fault(error) else "fault", text)


def is_system_fault(error: BaseException) -> bool:
    """Whether a process or machine was lost, so that the same work may well succeed at a second try."""
    import ray.exceptions as exceptions

    lost = (
        exceptions.WorkerCrashedError,
        exceptions.RayActorError,
        exceptions.NodeDiedError,
        exceptions.OutOfMemoryError,
        exceptions.ObjectLostError,
        exceptions.LocalRayletDiedError,
        exceptions.RaySystemError,
    )
    return isinstance(error, lost) and not getattr(error, "actor_init_failed", False)


@contextlib.contextmanager
def _captured(run_folder: Folder, name: str) -> Iterator[str]:
    """Sends this process's output, that of its libraries included, to the stage's log. Yields where the log
    is.

    On a remote root the log is put there when the stage ends.
    """
    if run_folder.is_local:
        path = Path(run_folder.path(name))
        path.parent.mkdir(parents=True, exist_ok=True)
    else:
        path = Path(tempfile.mkdtemp(prefix="pairless-log-")) / Path(name).name
    saved = os.dup(1), os.dup(2)
    with open(path, "ab") as file:
        _flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield run_folder.path(name)
    finally:
        _flush()
        for descriptor, target in zip(saved, (1, 2), strict=True):
            os.dup2(descriptor, target)
            os.close(descriptor)
        if not run_folder.is_local:
            with contextlib.suppress(OSError):
                run_folder.put_file(path, name)
                shutil.rmtree(path.parent)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
