"""A place for one engine actor: it is started there, given requests, and started again when it died."""

from __future__ import annotations

import collections
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cluster.chat import ChatReply, ChatRequest
from cluster.dag import Context
from cluster.errors import UserError, one_line
from cluster.folder import Folder
from cluster.record import run_folder

if TYPE_CHECKING:
    from cluster.vllm import EngineSettings

MAX_LOSSES = 3  # of an engine that gives few replies in between
MAX_DEATHS_OF_A_REQUEST = 2
_CALLS_IN_FLIGHT = 16  # of several requests each: a call costs the engine as much as a small step
_REPLIES_THAT_FORGIVE = 100
_RESTART_SECONDS = 1.0
_LABEL = "vllm"


@dataclass(frozen=True)
class Event:
    """What became of a call to the actor of a seat."""

    seat: Seat
    call: Literal["placed", "ready", "generate"]
    number: int
    result: Future


@dataclass(frozen=True)
class Sent:
    """A request, and how many engines died when they had it."""

    request: ChatRequest
    deaths: int = 0


class EngineLost(UserError):
    """An engine can't be started, or dies again and again."""


class Seat:
    """What a pool knows of one of its engines.

    `tell` gets an Event of every call that ends, in a thread of Ray's; the pool hands it to `take` in its own.
    """

    def __init__(self, name: str, settings: EngineSettings, context: Context, tell: Callable[[Event], None]):
        self.name, self._settings, self._context, self._tell = name, settings, context, tell
        self.log = _log_path(context, name)
        self.info: dict[str, Any] | None = None  # while the engine is ready
        self.suspects: collections.deque[Sent] = collections.deque()
        self._flying: dict[int, Sequence[Sent]] = {}
        self._lost: list[Sent] = []
        self._num_calls = 0
        self._num_losses = self._num_failed_starts = 0
        self._num_replies = 0  # since the last loss
        self._start_at: float | None = None
        self.start()

    @property
    def num_flying(self) -> int:
        """Requests that were sent and have neither come back nor been lost for certain."""
        return sum(len(sent) for sent in self._flying.values())

    @property
    def room(self) -> int:
        """How many new requests it takes in one call."""
        if self.info is None or self.suspects:
            return 0
        num_in_flight = self._settings.num_in_flight
        return min(num_in_flight - self.num_flying, max(1, num_in_flight // _CALLS_IN_FLIGHT))

    @property
    def seconds(self) -> float:
        """Since it was last started."""
        return time.monotonic() - self._started

    def start(self) -> None:
        """Finds or starts the actor, and asks it to tell when it has a place."""
        import ray

        from cluster.vllm_actor import EngineActor

        on_gpu = ray.cluster_resources().get("GPU", 0) > 0
        options: dict[str, Any] = {"num_gpus": self._settings.tensor_parallel_size} if on_gpu else {}
        if _label_is_offered():
            options["resources"] = {_LABEL: 1}
        actor_class = ray.remote(EngineActor).options(
            name=self.name, namespace=self._context.namespace, get_if_exists=True, lifetime="detached",
            num_cpus=0, max_restarts=MAX_LOSSES, max_concurrency=10_000, **options,
        )  # fmt: skip
        self._started, self._start_at, self.state = time.monotonic(), None, "waiting for a place"
        self._actor = actor_class.remote(self._settings, self.log, self._context.root, self._context.run_id)
        self._call("placed")

    def tick(self) -> None:
        """Starts the actor again where that is due."""
        if self._start_at is not None and time.monotonic() >= self._start_at:
            self.start()

    def send(self, sent: Sequence[Sent]) -> None:
        """Sends requests whose replies will come together."""
        self._flying[self._call("generate", [each.request for each in sent])] = sent

    def send_suspect(self) -> None:
        """Whatever a dead engine had may be what killed it: each is tried again alone."""
        if self.suspects and not self._flying and self.info is not None:
            self.send([self.suspects.popleft()])

    def forget(self) -> None:
        """No longer waits for anything that was sent."""
        self._flying.clear()
        self.suspects.clear()
        if self._lost:
            self._lost.clear()
            self.start()

    def give_up(self) -> list[Sent]:
        """Ends the actor for good; what it had. What is still on its way comes to nothing."""
        import ray

        sent = [*itertools.chain(*self._flying.values()), *self._lost, *self.suspects]
        self._flying.clear()
        self._lost.clear()
        self.suspects.clear()
        self.info = None
        ray.kill(self._actor)
        return sent

    def take(self, event: Event) -> list[ChatReply]:
        """Goes on by what became of a call; the replies that it brings.

        Raises:
            EngineLost: the model can't be loaded, or the engine dies again and again.
        """
        if event.call == "generate":
            return self._take_reply(event)
        error = event.result.exception()
        if error is not None:
            self._take_failed_start(error)
        elif event.call == "placed":
            self.state = "loading the engine"
            self._call("ready")
        else:
            self.state, self._num_failed_starts = "ready", 0
            self.info = event.result.result()
        return []

    def _call(self, method: Literal["placed", "ready", "generate"], *arguments: Any) -> int:
        self._num_calls += 1
        number = self._num_calls
        future = getattr(self._actor, method).remote(*arguments).future()
        future.add_done_callback(lambda result: self._tell(Event(self, method, number, result)))
        return number

    def _take_reply(self, event: Event) -> list[ChatReply]:
        from ray.exceptions import RayActorError

        sent = self._flying.pop(event.number, None)
        if sent is None:  # forgotten
            return []
        error = event.result.exception()
        if isinstance(error, RayActorError):
            self.info = None
            self._lost += [Sent(each.request, each.deaths + 1) for each in sent]
            return self._take_losses(error)
        self._num_replies += len(sent)
        return [*event.result.result(), *self._take_losses(error)]

    def _take_losses(self, error: BaseException | None) -> list[ChatReply]:
        """When each request that a dead engine had is lost for certain or has come back: starts it again."""
        if self._flying or not self._lost:
            return []
        self._context.incident(f"The engine died with {len(self._lost)} requests on their way; they are sent again.")
        self._num_losses = 1 if self._num_replies >= _REPLIES_THAT_FORGIVE else self._num_losses + 1
        self._num_replies = 0
        if self._num_losses > MAX_LOSSES:
            raise EngineLost(
                f"The engine for {self._settings.model} died {self._num_losses} times, the last time so: "
                f"{one_line(error)} Its log is {self.log}. If memory ran out, lower "
                "max_num_seqs, max_model_len or gpu_memory_utilization."
            )
        lost, self._lost = self._lost, []
        self.suspects.extend(sent for sent in lost if sent.deaths < MAX_DEATHS_OF_A_REQUEST)
        self.start()
        dead = "request: the engine died twice when it had this"
        return [ChatReply(sent.request.key, error=dead) for sent in lost if sent.deaths >= MAX_DEATHS_OF_A_REQUEST]

    def _take_failed_start(self, error: BaseException) -> None:
        from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

        if isinstance(error, ActorUnavailableError | ActorDiedError):  # restarting, or it retired just now
            self._num_failed_starts += isinstance(error, ActorDiedError)
            if self._num_failed_starts > MAX_LOSSES:
                raise EngineLost(
                    f"The engine for {self._settings.model} dies while it starts: its log is {self.log}. "
                    "Often the machine has too little memory."
                )
            self._start_at = time.monotonic() + _RESTART_SECONDS
        elif isinstance(error, RayTaskError):
            raise EngineLost(
                f"The engine can't load the model {self._settings.model}: "
                f"{one_line(error.cause, 600)} (log: {self.log})"
            )
        else:
            raise error


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
