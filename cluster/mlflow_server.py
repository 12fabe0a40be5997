"""An MLflow server in one process, for the runs of one machine: `python -m cluster.mlflow_server FOLDER
SOCKET`.

MLflow's own command imports everything twice, starts four workers and migrates the schema beside them; this
takes a third of the time. FOLDER gets the SQLite store and the artifacts; SOCKET is the number of a listening
socket that the process inherits. It ends with its parent.
"""

import atexit
import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

from cluster.errors import UserError

_PR_SET_PDEATHSIG = 1
_START_SECONDS = 180.0


def open_store_command(folder: Path) -> str:
    """The command that opens MLflow's pages for a folder when no server runs for it."""
    return (
        f"mlflow server --host 127.0.0.1 --port 5000 --backend-store-uri {store_uri(folder)} "
        f"--artifacts-destination {folder}/artifacts"
    )


def store_uri(folder: Path) -> str:
    """The URI of the SQLite store in a folder, for MLflow's own commands too."""
    return f"sqlite:///{folder}/mlflow.db"


def serve(folder: Path, descriptor: int) -> None:
    """Brings the store's schema up to date, then serves until the process is ended."""
    with contextlib.suppress(OSError, AttributeError):  # Linux alone has it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    os.environ.update(
        MLFLOW_DISABLE_TELEMETRY="true",
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
        _MLFLOW_SERVER_FILE_STORE=store_uri(folder),
        _MLFLOW_SERVER_REGISTRY_STORE=store_uri(folder),
        _MLFLOW_SERVER_ARTIFACT_ROOT="mlflow-artifacts:/",
        _MLFLOW_SERVER_ARTIFACT_DESTINATION=str(folder / "artifacts"),
        _MLFLOW_SERVER_SERVE_ARTIFACTS="true",
    )
    import uvicorn
    from mlflow.server.fastapi_app import app
    from mlflow.server.handlers import initialize_backend_stores

    # Two runs on one root may start together, and two migrations of one file would race.
    with open(folder / ".migrate.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        initialize_backend_stores(store_uri(folder), store_uri(folder), "mlflow-artifacts:/")
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


class Server:
    """A server of this process for a folder. Its socket listens from the start, so clients just wait until
    it answers.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "server.log"
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
        command = [sys.executable, "-m", "cluster.mlflow_server", str(folder), str(listener.fileno())]
        project = str(Path(__file__).resolve().parent.parent)
        paths = [project, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                pass_fds=[listener.fileno()], start_new_session=True,
            )  # fmt: skip
        listener.close()
        atexit.register(self.stop)
        self._wait()

    def _wait(self) -> None:
        import requests

        importing = threading.Thread(target=_import_mlflow)  # takes as long as the server does: side by side
        importing.start()
        try:
            requests.get(f"{self.uri}/health", timeout=_START_SECONDS, proxies={"http": ""}).raise_for_status()
        except requests.RequestException as error:
            self.stop()
            raise UserError(f"MLflow's server didn't start (log: {self.log}): {error}") from None
        importing.join()

    def stop(self) -> None:
        """Ends the server; what was logged is in the store."""
        atexit.unregister(self.stop)
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def _import_mlflow() -> None:
    import mlflow.tracking  # noqa: F401


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
