"""Engine actors that share the requests: started as far as the cluster has room, each fed as it empties."""

from __future__ import annotations

import hashlib
import queue
import time
from collections.abc import Iterable, Iterator
from typing import Any

from cluster.chat import ChatReply, ChatRequest
from cluster.dag import Context
from cluster.vllm import Engine, EngineSettings
from cluster.vllm_seat import EngineLost, Event, Seat, Sent

_PREFIX = "vllm-"
_IDLE_SECONDS = 5.0
_PATIENCE_SECONDS = 2.0
_END: Any = object()


class EnginePool(Engine):
    """The client of `settings.num_engines` engine actors. A request goes to the one that has the fewest.

    It works as soon as one engine is ready; others join when there is a place for them. What a dead engine had is
    sent again to its successor, one by one, while the others go on.
    """

    def __init__(self, settings: EngineSettings, context: Context):
        self.settings, self.context = settings, context
        # However many engines and requests a stage wants: they are the same engines.
        same = {"model": settings.resolved_model(), "num_engines": 1, "num_in_flight": 1}
        text = settings.model_copy(update=same).model_dump_json()
        self.name = _PREFIX + hashlib.sha256(text.encode()).hexdigest()[:12]
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._seats = [
            Seat(f"{self.name}-{index}", settings, context, self._events.put) for index in range(settings.num_engines)
        ]
        self._looked_at = time.monotonic()
        self._has_worked = False
        while not self.infos:
            self._wait()
        self._has_worked = True

    @property
    def infos(self) -> list[dict[str, Any]]:
        """Of each engine that is ready: {device, seconds, pid}."""
        return [seat.info for seat in self._seats if seat.info is not None]

    def generate(self, requests: Iterable[ChatRequest | None]) -> Iterator[ChatReply]:
        source, exhausted = iter(requests), False
        try:
            while True:
                for seat in self._seats:
                    seat.send_suspect()
                waits = False
                while not exhausted and not waits and (seat := self._freest()):
                    sent: list[Sent] = []
                    while len(sent) < seat.room and not exhausted and not waits:
                        request = next(source, _END)
                        exhausted, waits = request is _END, request is None
                        if not exhausted and not waits:
                            sent.append(Sent(request))
                    if sent:
                        seat.send(sent)
                if not any(seat.num_flying or seat.suspects for seat in self._seats):
                    if exhausted:
                        return
                    if waits:
                        raise RuntimeError("The source of requests waits for a reply, but none is on its way.")
                yield from self._wait()
        finally:
            for seat in self._seats:
                seat.forget()

    def _freest(self) -> Seat | None:
        """Of the engines that take requests, the one that has the fewest."""
        return min((seat for seat in self._seats if seat.room), key=lambda seat: seat.num_flying, default=None)

    def _wait(self) -> list[ChatReply]:
        """Until something happens, a second at most; the replies that came."""
        self.context.check()
        if time.monotonic() - self._looked_at >= 1.0:
            self._looked_at = time.monotonic()
            self._look_after_seats()
        try:
            event = self._events.get(timeout=1.0)
        except queue.Empty:
            return []
        try:
            return event.seat.take(event)
        except EngineLost as error:
            self._do_without(event.seat, error)
            return []

    def _do_without(self, lost: Seat, error: EngineLost) -> None:
        """Gives a seat up where others work; raises the error where none does."""
        self._seats.remove(lost)
        sent = lost.give_up()
        if not self._seats or not self._has_worked:
            for seat in self._seats:
                seat.give_up()
            raise error from None
        self.context.incident(f"{error} The stage goes on with {len(self._seats)} engines.")
        self._seats[0].suspects.extend(sent)

    def _look_after_seats(self) -> None:
        for seat in self._seats:
            seat.tick()
        first = self._seats[0]
        if not self.infos:
            self.context.progress(0, 1, first.state, seconds=round(first.seconds))
        waiting = [seat for seat in self._seats if seat.state == "waiting for a place"]
        if any(seat.seconds > _PATIENCE_SECONDS for seat in waiting):
            self._retire_others()

    def _retire_others(self) -> None:
        """Asks this run's other engines to make room if nobody uses them."""
        import ray

        for actor in ray.util.list_named_actors(all_namespaces=True):
            name, namespace = actor["name"], actor["namespace"]
            is_other = name.startswith(_PREFIX) and not name.startswith(self.name)
            if namespace == self.context.namespace and is_other:
                try:
                    other = ray.get_actor(name, namespace=namespace)
                    reason = f"Engine {name} was idle and made room for {self.name}."
                    ray.get(other.retire.remote(_IDLE_SECONDS, self.context.stage, reason), timeout=5)
                except (ValueError, ray.exceptions.RayError):
                    continue
