"""Chat models served by vLLM in a Ray actor that the stages of a run share, or by an outside server."""

import collections
import hashlib
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from cluster.chat import ChatReply, ChatRequest
from cluster.config import StageConfig, runtime
from cluster.dag import Context
from cluster.errors import UserError
from cluster.folder import Folder
from cluster.record import run_folder

_PREFIX = "vllm-"
_LABEL = "vllm"
_MAX_LOSSES = 3
_MAX_DEATHS_OF_A_REQUEST = 2
_IDLE_SECONDS = 5.0
_PROJECT = Path(__file__).resolve().parent.parent


class EngineSettings(StageConfig):
    """A model and how it is served. Stages with equal settings share one engine."""

    model: str = Field(description="A model folder (absolute, or from the project's or working folder) or a hub id.")
    dtype: str = Field("auto", description="`auto` is float32 without a GPU.")
    max_model_len: int = Field(2048, ge=16, description="Tokens of prompt and answer together.")
    max_image_pixels: int = Field(16_000_000, ge=1, description="A larger picture fails its own row.")
    seed: int = 0
    limit_images: int = runtime(2, ge=0, description="Pictures in one request.")
    max_num_seqs: int = runtime(64, ge=1, description="Requests that the engine batches.")
    num_in_flight: int = runtime(128, ge=1, description="Requests on their way at one time.")
    tensor_parallel_size: int = runtime(1, ge=1, description="GPUs for one engine.")
    gpu_memory_utilization: float = runtime(0.9, gt=0, le=1)
    cpu_kv_cache_gib: int = runtime(1, ge=1)
    endpoint: str | None = runtime(
        None,
        description="Base URL (http://127.0.0.1:8000/v1) of an OpenAI-compatible server to use instead.",
    )

    def resolved_model(self) -> str:
        """The absolute path if `model` is a folder here, else `model` as it stands (a hub id)."""
        for path in (Path(self.model).expanduser(), _PROJECT / self.model):
            if path.is_dir():
                return str(path.resolve())
        return self.model

    def source(self) -> list[str]:
        """What belongs to a stage's fingerprint (`Stage.sources`): the model's folder, or nothing for a hub
        id.
        """
        model = self.resolved_model()
        return [model] if os.path.isdir(model) else []


def get_engine(settings: EngineSettings, context: Context) -> "Engine":
    """The engine with these settings in this run: started at the first call, found at later ones.

    Returns when it is ready (its loading shows as progress).

    Raises:
        UserError: the model can't be loaded, or the server doesn't answer.
    """
    if settings.endpoint:
        from cluster.endpoint import EndpointEngine

        return EndpointEngine(settings, context)
    return RayEngine(settings, context)


class Engine:
    """What answers requests. `generate` is all that stages use."""

    def generate(self, requests: Iterable[ChatRequest | None]) -> Iterator[ChatReply]:
        """Replies in the order of completion; a bounded number of requests is on its way at any time.

        The iterable is read as far as there is room, so it may be endless, load lazily, and bring a retry
        after a reply was given out. Where it yields None, it is asked again after the next reply.
        """
        raise NotImplementedError


class RayEngine(Engine):
    """The client of an engine actor: finds or starts it, feeds it, and sends again what a dead engine had."""

    def __init__(self, settings: EngineSettings, context: Context):
        self.settings, self.context = settings, context
        text = settings.model_copy(update={"model": settings.resolved_model()}).model_dump_json()
        self.name = _PREFIX + hashlib.sha256(text.encode()).hexdigest()[:12]
        self.log = _log_path(context, self.name)
        self._losses = 0
        self.info = self._connect()

    def generate(self, requests: Iterable[ChatRequest | None]) -> Iterator[ChatReply]:
        import ray
        from ray.exceptions import RayActorError

        source, exhausted = iter(requests), False
        flying: dict[Any, tuple[ChatRequest, int]] = {}
        suspects: collections.deque[tuple[ChatRequest, int]] = collections.deque()
        while True:
            # Whatever a dead engine had may be what killed it: each is tried again alone.
            while suspects and not flying:
                request, deaths = suspects.popleft()
                flying[self._actor.generate.remote(request)] = (request, deaths)
            while not suspects and not exhausted and len(flying) < self.settings.num_in_flight:
                request = next(source, _END)
                if request is _END:
                    exhausted = True
                elif request is None:
                    break
                else:
                    flying[self._actor.generate.remote(request)] = (request, 0)
            if not flying:
                if exhausted and not suspects:
                    return
                if not suspects:
                    raise RuntimeError("The source of requests waits for a reply, but none is on its way.")
                continue
            done, _ = ray.wait(list(flying), num_returns=1, timeout=1.0)
            self.context.check()
            for ref in done:
                try:
                    reply = ray.get(ref)
                except RayActorError as error:
                    lost = self._gather_lost(flying)
                    self._replace(error, len(lost))
                    for request, deaths in lost:
                        if deaths + 1 < _MAX_DEATHS_OF_A_REQUEST:
                            suspects.append((request, deaths + 1))
                        else:
                            yield ChatReply(request.key, error="request: the engine died twice when it had this")
                    break
                del flying[ref]
                yield reply

    def _gather_lost(self, flying: dict[Any, tuple[ChatRequest, int]]) -> list[tuple[ChatRequest, int]]:
        """Takes from `flying` all that fails with the dead engine, in order; what it had finished stays."""
        import ray
        from ray.exceptions import RayActorError

        lost = []
        for ref in list(flying):
            try:
                ray.get(ref, timeout=30)
            except (RayActorError, ray.exceptions.GetTimeoutError):
                lost.append(flying.pop(ref))
        return lost

    def _replace(self, error: Exception, num_lost: int) -> None:
        self._losses += 1
        self.context.incident(f"The engine died with {num_lost} requests on their way; they are sent again.")
        if self._losses > _MAX_LOSSES:
            raise UserError(
                f"The engine for {self.settings.model} died {self._losses} times, the last time so: "
                f"{' '.join(str(error).split())[:300]} Its log is {self.log}. If memory ran out, lower "
                "max_num_seqs, max_model_len or gpu_memory_utilization."
            ) from None
        self.info = self._connect()

    def _connect(self) -> dict[str, Any]:
        """Finds or starts the actor and waits until its engine is ready."""
        import ray
        from ray.exceptions import ActorDiedError, ActorUnavailableError

        from cluster.vllm_actor import EngineActor

        on_gpu = ray.cluster_resources().get("GPU", 0) > 0
        options: dict[str, Any] = {"num_gpus": self.settings.tensor_parallel_size} if on_gpu else {}
        if _label_is_offered():
            options["resources"] = {_LABEL: 1}
        actor_class = ray.remote(EngineActor).options(
            name=self.name, namespace=self.context.namespace, get_if_exists=True, lifetime="detached",
            num_cpus=0, max_restarts=_MAX_LOSSES, max_concurrency=10_000, **options,
        )  # fmt: skip
        started, num_deaths = time.monotonic(), 0
        while True:
            try:
                self._actor = actor_class.remote(self.settings, self.log, self.context.root, self.context.run_id)
                self._wait(self._actor.placed.remote(), "waiting for a place", started)
                return self._wait(self._actor.ready.remote(), "loading the engine", started)
            except (ActorUnavailableError, ActorDiedError) as error:  # restarting, or it retired just now
                num_deaths += isinstance(error, ActorDiedError)
                if num_deaths > _MAX_LOSSES:
                    raise UserError(
                        f"The engine for {self.settings.model} dies while it starts: its log is {self.log}. "
                        "Often the machine has too little memory."
                    ) from None
                time.sleep(1.0)
            except ray.exceptions.RayTaskError as error:
                ray.kill(self._actor)
                raise UserError(
                    f"The engine can't load the model {self.settings.model}: "
                    f"{' '.join(str(error.cause).split())} (log: {self.log})"
                ) from None

    def _wait(self, ref: Any, state: str, started: float) -> Any:
        import ray

        while True:
            done, _ = ray.wait([ref], timeout=1.0)
            if done:
                return ray.get(ref)
            self.context.check()
            waited = time.monotonic() - started
            self.context.progress(0, 1, state, seconds=round(waited))
            if state.startswith("waiting") and waited > 2:
                self._retire_others()

    def _retire_others(self) -> None:
        """Asks this run's other engines to make room if nobody uses them."""
        import ray

        for actor in ray.util.list_named_actors(all_namespaces=True):
            name, namespace = actor["name"], actor["namespace"]
            if namespace == self.context.namespace and name.startswith(_PREFIX) and name != self.name:
                try:
                    other = ray.get_actor(name, namespace=namespace)
                    reason = f"Engine {name} was idle and made room for {self.name}."
                    ray.get(other.retire.remote(_IDLE_SECONDS, self.context.stage, reason), timeout=5)
                except (ValueError, ray.exceptions.RayError):
                    continue


_END: Any = object()


def _label_is_offered() -> bool:
    """Whether to ask for the label: some node has it, or the cluster grows and will make one that has."""
    import ray

    grows = Path("~/ray_bootstrap_config.yaml").expanduser().exists() or "KUBERNETES_SERVICE_HOST" in os.environ
    return grows or ray.cluster_resources().get(_LABEL, 0) > 0


def _log_path(context: Context, name: str) -> str:
    folder = run_folder(Folder(context.root), context.run_id)
    if folder.is_local:
        return folder.path(f"logs/{name}.log")
    return str(Path(tempfile.gettempdir()) / f"pairless-{os.getuid()}" / "logs" / f"{context.run_id}-{name}.log")
