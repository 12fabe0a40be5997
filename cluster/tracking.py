"""MLflow: a parent run for each pipeline run, a child for each stage. Everything by explicit run ids.

The driver uses `start_run`; what runs a stage, on any machine, uses `StageTracker`. MLflow takes seconds to
import, so nothing else imports this module before it is needed.
"""

import contextlib
import hashlib
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.artifacts import Artifact
from cluster.errors import UserError, one_line
from cluster.folder import Folder
from cluster.mlflow_server import Server, open_store_command
from cluster.mlflow_values import dataset, flat, numbers

EXPERIMENT = "pairless"
_PARENT_TAG = "mlflow.parentRunId"
_RUN_TAG = "pairless.run_id"
_LOOPBACK = "127.0.0.1"

if _LOOPBACK not in os.environ.get("NO_PROXY", ""):  # a proxy doesn't know this machine's server
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(
        filter(None, [os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), _LOOPBACK])
    )
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")


def store_folder(root: Folder) -> Path:
    """Where the default store of a root lies: in it, or for a remote root in the working folder."""
    if root.is_local:
        return Path(root.url) / "mlflow"
    return Path(f"mlruns-{hashlib.sha256(root.url.encode()).hexdigest()[:8]}").resolve()


def open_command(root: Folder) -> str:
    """The command that opens MLflow's pages for a root once its run, and so the run's server, has ended."""
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return f"open {uri}"
    return open_store_command(store_folder(root))


def start_run(
    root: Folder, run_id: str, profile: str, stages: Sequence[str], configs: Mapping[str, Mapping[str, Any]]
) -> "RunTracking":
    """Starts the parent run, or goes on with that of the same `run_id`.

    The store is MLFLOW_TRACKING_URI if that is set, else SQLite under the root behind a server on this
    machine, which ends with this process.

    Raises:
        UserError: the server can't be started or doesn't answer.
    """
    server = None
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        server = Server(store_folder(root))
        uri = server.uri
    try:
        return RunTracking(uri, server, root, run_id, profile, stages, configs)
    except Exception as error:
        end = f" Its log is {server.log}." if server else " It is what MLFLOW_TRACKING_URI names."
        if server:
            server.stop()
        raise UserError(f"MLflow at {uri} doesn't work: {one_line(error)}.{end}") from error


class RunTracking:
    """The driver's side: the parent run and the beginning and end of its children.

    tracking_uri: for the stages' own clients. parent_run_id: the MLflow id of the pipeline run.
    """

    def __init__(
        self, uri: str, server: Server | None, root: Folder, run_id: str, profile: str, stages: Sequence[str],
        configs: Mapping[str, Mapping[str, Any]],
    ):  # fmt: skip
        from mlflow.tracking import MlflowClient

        self.tracking_uri, self._server = uri, server
        self._client = MlflowClient(tracking_uri=uri)
        self._experiment = _experiment_id(self._client)
        found = self._client.search_runs(
            [self._experiment], f"tags.`{_RUN_TAG}` = '{run_id}' and tags.kind = 'pipeline'"
        )
        if found:
            self.parent_run_id = found[0].info.run_id
            self._client.update_run(self.parent_run_id, "RUNNING")
        else:
            tags = {_RUN_TAG: run_id, "kind": "pipeline", "profile": profile, "root": root.url}
            run = self._client.create_run(self._experiment, run_name=run_id, tags=tags)
            self.parent_run_id = run.info.run_id
            _log_params(self._client, self.parent_run_id, {"profile": profile, "stages": ",".join(stages)} | configs)
        self._monitor = _start_monitor(uri, self.parent_run_id)

    def stage_run(
        self, stage: str, fingerprint: str, config: Mapping[str, Any], inputs: Mapping[str, Artifact],
        resume_run_id: str | None = None,
    ) -> str:  # fmt: skip
        """Begins a stage's run, or goes on with `resume_run_id` if the store still knows it. Returns its
        id.
        """
        from mlflow.exceptions import MlflowException

        if resume_run_id:
            try:
                self._client.update_run(resume_run_id, "RUNNING")
                self._client.set_tag(resume_run_id, _PARENT_TAG, self.parent_run_id)
                return resume_run_id
            except MlflowException:  # another store than the one of the earlier attempt
                pass
        tags = {_PARENT_TAG: self.parent_run_id, "kind": "stage", "stage": stage, "fingerprint": fingerprint}
        run_id = self._client.create_run(self._experiment, run_name=stage, tags=tags).info.run_id
        _log_params(self._client, run_id, config)
        datasets = [
            dataset(name, artifact.fingerprint, artifact.folder.url, artifact.manifest.rows)
            for name, artifact in inputs.items()
        ]
        if datasets:
            self._client.log_inputs(run_id, datasets)
        return run_id

    def end_stage(self, mlflow_run_id: str, status: str, artifact: Artifact | None = None) -> None:
        """Ends a stage's run (FINISHED, FAILED or KILLED); the artifact goes in by reference, its figures as
        metrics.
        """
        if artifact is not None:
            self._client.set_tag(mlflow_run_id, "artifact", artifact.folder.url)
            figures = numbers(artifact.manifest.figures)
            if artifact.manifest.rows is not None:
                figures["rows"] = artifact.manifest.rows
            _log_metrics(self._client, mlflow_run_id, figures, 0)
        self._client.set_terminated(mlflow_run_id, status)

    def end(self, status: str, summary: Mapping[str, Any] | None = None) -> None:
        """Ends the parent run and the server; the summary's results become metrics `METHOD/METRIC`."""
        try:
            if self._monitor:
                self._monitor.finish()
            if summary:
                self._client.log_dict(self.parent_run_id, dict(summary), "summary.json")
                _log_metrics(self._client, self.parent_run_id, numbers(summary.get("results") or {}), 0)
            self._client.set_terminated(self.parent_run_id, status)
        finally:
            if self._server:
                self._server.stop()


class StageTracker:
    """A stage's side, in any process on any machine that reaches the tracking URI."""

    def __init__(self, tracking_uri: str, mlflow_run_id: str):
        from mlflow.tracking import MlflowClient

        self.run_id = mlflow_run_id
        self._uri = tracking_uri
        self._client = MlflowClient(tracking_uri=tracking_uri)
        run = self._client.get_run(mlflow_run_id)
        # One monitor for each machine is enough, however many processes of the stage have a tracker.
        tag = f"monitor.{socket.gethostname()}"
        if not _is_alive(run.data.tags.get(tag)):
            self._client.set_tag(mlflow_run_id, tag, str(os.getpid()))
            self._monitor = _start_monitor(tracking_uri, mlflow_run_id)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        _log_metrics(self._client, self.run_id, metrics, step)

    def log_artifact(self, path: str | os.PathLike[str], artifact_path: str | None = None) -> None:
        """Copies a local file, or a folder's files, to the run."""
        if os.path.isdir(path):
            self._client.log_artifacts(self.run_id, os.fspath(path), artifact_path)
        else:
            self._client.log_artifact(self.run_id, os.fspath(path), artifact_path)

    def log_input(self, name: str, digest: str, rows: int | None = None) -> None:
        """Records a data set that the stage reads; of the digest MLflow keeps 36 characters."""
        self._client.log_inputs(self.run_id, [dataset(name, digest, name, rows)])

    def register_adapter(
        self, local_dir: str | os.PathLike[str], name: str, params: Mapping[str, Any] | None = None
    ) -> str:
        """Logs a trained adapter's files as a model of this run and as a new version of the registered model
        `name`.

        The files go in as they are: nothing is pickled. Returns the version.
        """
        from mlflow.entities import LoggedModelOutput
        from mlflow.exceptions import MlflowException

        experiment = self._client.get_run(self.run_id).info.experiment_id
        texts = {key: value for key, value in flat(params or {})}
        model = self._client.create_logged_model(
            experiment, name=name, source_run_id=self.run_id, params=texts, model_type="adapter"
        )
        try:
            self._client.log_model_artifacts(model.model_id, os.fspath(local_dir))
        except Exception:  # whatever broke the upload goes on; the model must not look as if it were still coming
            self._client.finalize_logged_model(model.model_id, "FAILED")
            raise
        self._client.finalize_logged_model(model.model_id, "READY")
        self._client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, 0)])
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = self._client.create_model_version(
            name, f"models:/{model.model_id}", run_id=self.run_id, model_id=model.model_id, await_creation_for=0
        )
        return str(version.version)


def _experiment_id(client: Any) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment:
        return experiment.experiment_id
    try:
        return client.create_experiment(EXPERIMENT)
    except MlflowException:  # another run made it just now
        return client.get_experiment_by_name(EXPERIMENT).experiment_id


def _start_monitor(uri: str, run_id: str) -> Any:
    """System metrics (CPU, memory, disk, network, GPU) of this machine into a run, named by the machine."""
    import logging

    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
    try:
        monitor = SystemMetricsMonitor(run_id, resume_logging=True, node_id=socket.gethostname(), tracking_uri=uri)
    except Exception:  # no psutil, or a machine that doesn't tell: not worth a run
        return None
    monitor.start()
    return monitor


def _log_metrics(client: Any, run_id: str, metrics: Mapping[str, float], step: int) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    items = [Metric(name, float(value), now, step) for name, value in metrics.items()]
    for start in range(0, len(items), 1000):
        client.log_batch(run_id, metrics=items[start : start + 1000])


def _log_params(client: Any, run_id: str, params: Mapping[str, Any]) -> None:
    """Nested mappings become `a.b`. A parameter that is already there with another value stays as it was."""
    from mlflow.entities import Param
    from mlflow.exceptions import MlflowException

    known = client.get_run(run_id).data.params
    items = [Param(name, value) for name, value in flat(params) if name not in known]
    for start in range(0, len(items), 100):
        with contextlib.suppress(MlflowException):  # another process was quicker
            client.log_batch(run_id, params=items[start : start + 100])


def _is_alive(pid: str | None) -> bool:
    return bool(pid) and pid.isdigit() and Path(f"/proc/{pid}").exists()
