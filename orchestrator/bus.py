"""The event bus: code of a team that is told what happens in the runs of this worker.

Handlers are called with events that this worker has committed, in order for each session, at most once. Each has a
queue, a task and a timeout of its own: one that fails, hangs or is slow loses events of its own, which are counted and
logged, and nobody else notices. What must not be missed is in the session's log; the bus is for what is good to know.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any, Final, Protocol, TypeAlias, runtime_checkable

import orjson
import structlog
from redis.asyncio import Redis

from kernel.events import EVENT_TYPES
from kernel.fanout import Publisher
from kernel.tasks import end
from orchestrator.measures import Measures

log = structlog.get_logger(__name__)

MOST_WAITING: Final = 1_000
"""Batches of events that wait for one handler, before further ones are dropped."""
_MOST_BYTES: Final = 8 * 1_048_576
_FAREWELL: Final = 2.0
_CANCELS: Final = 3
_CANCEL_AGAIN_AFTER: Final = 0.2
_SAID_EVERY: Final = 10.0  # seconds between two lines about one handler's dropped events


@dataclass(frozen=True, slots=True)
class BusEvent:
    """One committed event. `data` are its fields, as followers of the session see them."""

    org_id: str
    session_id: str
    run_id: str
    seq: int
    type: str
    data: Mapping[str, Any] = field(repr=False)


@runtime_checkable
class EventHandler(Protocol):
    """What a plug-in of the group `longhaul.events` is.

    It may have a `timeout`: seconds for one event, 10 by default.
    """

    @property
    def types(self) -> Collection[str]:
        """The types of event that it is told of; `*` stands for all."""
        ...

    def handle(self, event: BusEvent) -> Any:
        """Told of one event. A coroutine is awaited in the worker's event loop, which it must not block; a plain
        function is called on a thread of its own, and may."""
        ...


Function: TypeAlias = Callable[[BusEvent], Any]


_DEFAULT_TIMEOUT: Final = 10.0


@dataclass(frozen=True, slots=True)
class FunctionHandler:
    """A function as an event handler."""

    function: Function
    types: Collection[str]
    timeout: float = _DEFAULT_TIMEOUT

    def handle(self, event: BusEvent) -> Any:
        return self.function(event)


def on(*types: str, timeout: float = _DEFAULT_TIMEOUT) -> Callable[[Function], FunctionHandler]:
    """Makes an event handler of a function: `@on("done", "error")`, `@on("*")`.

    Raises:
        ValueError: no type, or one that no event has.
    """
    wrong = [type for type in types if type != "*" and type not in EVENT_TYPES]
    if wrong or not types:
        raise ValueError(f"no such events: {', '.join(wrong) or 'none named'}; there are *, {', '.join(EVENT_TYPES)}")
    return lambda function: FunctionHandler(function, types, timeout)


@dataclass(frozen=True, slots=True)
class _Batch:
    org_id: str
    session_id: str
    run_id: str
    frames: bytes


class EventBus:
    """Tells handlers. `start` and `aclose` belong to the worker's event loop.

    Args:
        handlers: by name.
        measures: counts what each handler was told, by outcome: ok, failed, timed_out, dropped.
    """

    def __init__(self, handlers: Mapping[str, EventHandler], measures: Measures) -> None:
        self._desks = [_Desk(name, handler, measures) for name, handler in handlers.items()]

    def start(self) -> None:
        for desk in self._desks:
            desk.start()

    def offer(self, org_id: str, session_id: str, run_id: str, frames: bytes) -> None:
        """Puts committed frames of one run in line. Never waits, never raises."""
        batch = _Batch(org_id, session_id, run_id, frames)
        for desk in self._desks:
            desk.take(batch)

    async def aclose(self) -> None:
        """Lets handlers finish what waits for them, within two seconds."""
        await asyncio.gather(*(desk.aclose() for desk in self._desks))

    @property
    def stuck(self) -> bool:
        """Whether, after `aclose`, a handler still goes on that was told to end."""
        return any(desk.stuck for desk in self._desks)


class _Desk:
    """One handler with what waits for it."""

    def __init__(self, name: str, handler: EventHandler, measures: Measures) -> None:
        self._name = name
        self._handler = handler
        self._measures = measures
        types = set(handler.types)
        self._marks = None if "*" in types else tuple(f"\nevent: {type}\n".encode() for type in sorted(types))
        self._timeout = float(getattr(handler, "timeout", _DEFAULT_TIMEOUT))
        self._blocking = not inspect.iscoroutinefunction(
            handler.function if isinstance(handler, FunctionHandler) else handler.handle
        )
        self._queue: asyncio.Queue[_Batch] = asyncio.Queue(MOST_WAITING)
        self._bytes = 0
        self._dropped = 0
        self._said = float("-inf")
        self._busy: asyncio.Future[Any] | None = None
        self._thread: _Thread | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def stuck(self) -> bool:
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"events {self._name}")

    def take(self, batch: _Batch) -> None:
        if self._marks is not None and not any(mark in batch.frames for mark in self._marks):
            return
        if self._queue.full() or self._bytes + len(batch.frames) > _MOST_BYTES:
            self._drop(sum(1 for _ in self._wanted(batch)), "it is too slow")
            return
        self._bytes += len(batch.frames)
        self._queue.put_nowait(batch)

    async def aclose(self) -> None:
        if self._task is None:
            return
        done = asyncio.create_task(self._queue.join())
        await asyncio.wait([done, self._task], timeout=_FAREWELL, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            log.warning("event_handler_left", handler=self._name, waiting=self._queue.qsize())
        await end(done)
        self._closed = True
        for _ in range(_CANCELS):
            self._task.cancel()
            await asyncio.wait([self._task], timeout=_CANCEL_AGAIN_AFTER)
            if self._task.done():
                break
        if self._thread is not None:
            self._thread.close()

    async def _run(self) -> None:
        while not self._closed:  # a handler may have swallowed the cancellation
            batch = await self._queue.get()
            self._bytes -= len(batch.frames)
            try:
                for event in self._wanted(batch):
                    await self._tell(event)
            finally:
                self._queue.task_done()

    async def _tell(self, event: BusEvent) -> None:
        """Never raises, but for its own cancellation."""
        if self._busy is not None and not self._busy.done():
            # A thread can't be ended: until the last call returns, further events are lost to this handler.
            self._drop(1, "an earlier call has not returned")
            return
        clock = asyncio.timeout(self._timeout)
        try:
            async with clock:
                if self._blocking:
                    await self._on_a_thread(event)
                else:
                    await self._handler.handle(event)
            outcome = "ok"
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            outcome = "failed"
            log.exception("event_handler_failed", handler=self._name, type=event.type, run_id=event.run_id)
        except (Exception, SystemExit):
            if clock.expired():
                outcome = "timed_out"
                about = {"type": event.type, "run_id": event.run_id, "seconds": self._timeout}
                log.warning("event_handler_timed_out", handler=self._name, **about)
            else:
                outcome = "failed"
                log.exception("event_handler_failed", handler=self._name, type=event.type, run_id=event.run_id)
        self._measures.count("handlers", self._name, outcome)

    async def _on_a_thread(self, event: BusEvent) -> None:
        if self._thread is None:
            self._thread = _Thread(f"events {self._name}")
        self._busy = call = self._thread.call(partial(self._handler.handle, event))
        given = await asyncio.shield(call)
        if inspect.isawaitable(given):
            await given

    def _wanted(self, batch: _Batch) -> Iterator[BusEvent]:
        for frame in batch.frames.split(b"\n\n"):
            if frame and (self._marks is None or any(mark in frame for mark in self._marks)):
                yield _event(batch, frame)

    def _drop(self, count: int, why: str) -> None:
        self._dropped += count
        for _ in range(count):
            self._measures.count("handlers", self._name, "dropped")
        if time.monotonic() - self._said > _SAID_EVERY:
            self._said = time.monotonic()
            log.warning("events_dropped", handler=self._name, dropped=self._dropped, because=why)


class _Thread:
    """A thread that calls functions one after another. The process does not wait for it when it ends."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def call(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        future.add_done_callback(_seen)
        self._calls.put((function, future))
        return future

    def close(self) -> None:
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            function, future = call
            try:
                settle = partial(_give, future, function(), None)
            except BaseException as error:  # whatever it is, it is the handler's
                settle = partial(_give, future, None, error)
            try:
                self._loop.call_soon_threadsafe(settle)
            except RuntimeError:  # the loop has been closed meanwhile
                return


def _give(future: asyncio.Future[Any], given: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(given)
    else:
        future.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))


def _seen(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()  # of one that nobody waits for any more, nobody needs to be told


def _event(batch: _Batch, frame: bytes) -> BusEvent:
    first, second, third = frame.split(b"\n")
    return BusEvent(
        batch.org_id,
        batch.session_id,
        batch.run_id,
        int(first.removeprefix(b"id: ")),
        second.removeprefix(b"event: ").decode(),
        orjson.loads(third.removeprefix(b"data: ")),
    )


class TellingPublisher(Publisher):
    """Sends events to those who follow a session, and to the bus."""

    def __init__(self, redis: Redis, bus: EventBus) -> None:
        super().__init__(redis)
        self._bus = bus

    def publish(
        self, org_id: str, session_id: str, run_id: str, *, first: int, last: int, final: bool, frames: bytes
    ) -> None:
        """See `Publisher.publish`."""
        super().publish(org_id, session_id, run_id, first=first, last=last, final=final, frames=frames)
        self._bus.offer(org_id, session_id, run_id, frames)


def unknown_types(handler: EventHandler) -> Sequence[str]:
    """Types of this handler that no event has."""
    return [type for type in handler.types if type != "*" and type not in EVENT_TYPES]
