"""The graph's checkpointer on Postgres.

`PostgresCheckpoints` is what LangGraph calls to remember a thread. With a sink, a run's pen, it only stages rows,
without waiting: the journal's group commit writes them in the transaction of the step's events, under the run's
epoch. Without a sink it writes at once through the pool.

What always holds
- Every row belongs to the org given at construction; no call reaches another's.
- State is plain data in strict MessagePack: None, booleans, numbers, text, bytes, lists, tuples, sets,
  dictionaries with text keys, and the graph's own packets. Anything else is refused when it is written, never at
  the resume that needs it, and no stored byte names code to import. There is no pickle on either way.
- Rows are staged in the order in which the graph hands them over: a task's writes before the checkpoint they
  lead to. A state in which no node has run yet is held back until something needs it, for the run's input makes
  it again: the first events of a run wait for no checkpoint.
- Delta channels are refused: their values are spread over ancestors, which pruning and staging throw away.

Run graphs with durability "sync": then a refused state stops the graph before its next node starts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import astuple, replace
from typing import Any, Protocol, cast

import asyncpg
import ormsgpack
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_checkpoint_id,
    get_checkpoint_metadata,
)
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT
from langgraph.constants import START
from langgraph.types import Interrupt, Overwrite, Send

from kernel.checkpoints import CheckpointRow, CheckpointWriteRow
from kernel.errors import LonghaulError
from kernel.postgres import Pool, patiently
from kernel.sql import statements

SQL = statements(__package__, "checkpoints.sql")

FORMAT = "msgpack"
_OPTIONS = (
    ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_TUPLE
    | ormsgpack.OPT_PASSTHROUGH_UUID
)
# What plain MessagePack lacks, by exact type: a subclass, a named tuple for one, would come back as something else.
# Each has its code, which is for ever, how it comes apart and how it is put together again.
_PACKETS: dict[type, tuple[int, Callable[[Any], list[object]], Callable[..., object]]] = {
    tuple: (1, list, lambda *parts: parts),
    set: (2, list, lambda *parts: set(parts)),
    Send: (3, lambda it: [it.node, it.arg, it.timeout], lambda node, arg, wait: Send(node, arg, timeout=wait)),
    Interrupt: (
        4,
        lambda it: [it.value, it.id, it.response_schema],
        lambda value, id, schema: Interrupt(value, id, response_schema=schema),
    ),
    Overwrite: (5, lambda it: [it.value], Overwrite),
}
_BUILDERS = {code: build for code, _, build in _PACKETS.values()}
# The decoder does not mind bytes after the value. So it is given the pair [value, end], and the end must be ours.
_END_CODE = 127
_PAIR, _END = b"\x92", ormsgpack.packb(ormsgpack.Ext(_END_CODE, b""))
_ERROR_LIMIT = 2_000  # characters
_PATH_LIMIT = 200  # characters
_PAGE = 100  # rows
# What has run in a state that the input alone makes: the loop's own bookkeeping and the entry of the graph.
_BEFORE_ANY_NODE = frozenset({"__input__", "__interrupt__", START})
# What a task that did not come to its end has written.
_NO_OUTPUT = frozenset({ERROR, INTERRUPT})


class CheckpointRefused(LonghaulError):
    """State that may not be stored, or stored bytes that may not be read.

    Either the graph's code must change, or someone has been at the table.
    """

    code = "checkpoint_refused"


class CheckpointSink(Protocol):
    """Where the rows of a running run go: its pen."""

    def stage_checkpoint(self, row: CheckpointRow) -> None: ...

    def stage_writes(self, rows: Sequence[CheckpointWriteRow], finished: str | None) -> None:
        """`finished` is the node whose output this is; None: it failed, or was interrupted."""

    async def committed(self) -> None:
        """Waits until all that was staged so far is in Postgres."""


class StrictMsgpack:
    """MessagePack of plain data and of the graph's own packets; an exception becomes its text."""

    def dumps_typed(self, obj: object) -> tuple[str, bytes]:
        """The format's name and the bytes.

        Raises:
            CheckpointRefused: something in `obj` is not plain data; says what and where.
        """
        return FORMAT, _dump(obj, "state")

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """The value of what `dumps_typed` gave.

        Raises:
            CheckpointRefused: another format, or not exactly one value in this one.
        """
        return _load(*data, "stored state")


def _dump(value: object, what: str) -> bytes:
    try:
        return _pack(value)
    except TypeError as error:
        raise CheckpointRefused(
            f"{what} must be plain data: {_culprit(value, str(error))}",
            suggestions=("keep text, numbers, lists and dictionaries in the state, and ids in place of objects",),
        ) from None


def _load(format: str, blob: bytes, what: str) -> Any:
    if format != FORMAT:
        raise CheckpointRefused(f"{what} is in the format {format!r}; only {FORMAT!r} is read")
    try:
        value, end = ormsgpack.unpackb(_PAIR + blob + _END, ext_hook=_unpacket)
    except ValueError as error:
        raise CheckpointRefused(f"{what} is no readable MessagePack: {error}") from None
    if end is not _END:
        raise CheckpointRefused(f"{what} is no readable MessagePack: bytes follow the value")
    return value


def _pack(obj: object) -> bytes:
    return ormsgpack.packb(obj, default=_packet, option=_OPTIONS)


def _packet(obj: object) -> ormsgpack.Ext | str:
    if isinstance(obj, BaseException):
        return repr(obj)[:_ERROR_LIMIT]
    if type(obj) not in _PACKETS:
        raise TypeError
    code, take_apart, _ = _PACKETS[type(obj)]
    return ormsgpack.Ext(code, _pack(take_apart(obj)))


def _unpacket(code: int, data: bytes) -> object:
    if code == _END_CODE:
        return _END
    return _BUILDERS[code](*ormsgpack.unpackb(data, ext_hook=_unpacket))


def _culprit(value: object, trouble: str) -> str:
    """What the trouble is and where in `value`: for people, so it may take its time."""
    path = "value"
    while True:
        if isinstance(value, dict):
            children = [(f"[{key!r}]", child) for key, child in value.items()]
        else:
            _, take_apart, _ = _PACKETS.get(type(value), (0, lambda it: it if isinstance(it, list) else [], None))
            children = [(f"[{place}]", child) for place, child in enumerate(take_apart(value))]
        for step, child in children:
            try:
                _pack(child)
            except TypeError as error:
                path, value, trouble = path + step, child, str(error)
                break
        else:
            return f"{trouble}, at {path[:_PATH_LIMIT]}"


class PostgresCheckpoints(BaseCheckpointSaver[int]):
    """The threads of one org. Making one costs nothing: each attempt of a run has its own.

    Args:
        sink: the run's pen. Without one, every put is written at once.
        fresh: the run is in its first epoch, so its threads have no checkpoints but those staged here, and
            Postgres is not asked for any.
    """

    serde = StrictMsgpack()

    # Not the base's: that one only wraps serializers that lack the typed methods, and takes its time.
    def __init__(self, pool: Pool, org_id: str, sink: CheckpointSink | None = None, *, fresh: bool = False) -> None:
        self._pool = pool
        self._org_id = org_id
        self._sink = sink
        self._fresh = fresh
        self._held: dict[tuple[str, str], CheckpointRow] = {}
        self._staged: set[str] = set()
        self._refused: CheckpointRefused | None = None

    def with_allowlist(self, extra_allowlist: Collection[tuple[str, ...]]) -> PostgresCheckpoints:
        """This saver: no list makes the format any wider."""
        return self

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Stores or stages a checkpoint and returns its address.

        Raises:
            CheckpointRefused: the state, or a write that led to it, is not plain data.
        """
        if self._refused is not None:
            raise self._refused
        thread_id, namespace = _thread(config)
        if metadata.get("counters_since_delta_snapshot"):
            raise CheckpointRefused(f"thread {thread_id} has a delta channel: use one that keeps its whole value")
        told = get_checkpoint_metadata(config, metadata)
        row = CheckpointRow(
            thread_id,
            namespace,
            checkpoint["id"],
            get_checkpoint_id(config),
            FORMAT,
            _dump(checkpoint, f"a checkpoint of thread {thread_id}"),
            _dump(told, f"the metadata of thread {thread_id}"),
        )
        if self._sink is None:
            await self._pool.execute(SQL.put_checkpoint, self._org_id, *astuple(row), told.get("run_id"))
        else:
            held = self._held.pop((thread_id, namespace), None)
            if held is not None and held.checkpoint_id == row.parent_id:
                row = replace(row, parent_id=held.parent_id)  # the one held back will never be stored
            if checkpoint["versions_seen"].keys() <= _BEFORE_ANY_NODE:
                self._held[thread_id, namespace] = row
            else:
                self._staged.add(thread_id)
                self._sink.stage_checkpoint(row)
        return _address(thread_id, namespace, row.checkpoint_id)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Stores or stages what a task of the graph has written.

        Raises:
            CheckpointRefused: a value is not plain data; the next checkpoint is then refused too.
        """
        thread_id, namespace = _thread(config)
        checkpoint_id = config["configurable"]["checkpoint_id"]
        held = self._held.get((thread_id, namespace))
        from_held = held is not None and held.checkpoint_id == checkpoint_id
        if from_held and task_path.endswith(START):
            return  # the entry of the graph only spreads the input over the channels
        rows = []
        for place, (channel, value) in enumerate(writes):
            try:
                blob = _dump(value, f"the channel {channel!r} of thread {thread_id}")
            except CheckpointRefused as error:
                self._refused = error
                raise
            idx = WRITES_IDX_MAP.get(channel, place)
            rows.append(
                CheckpointWriteRow(thread_id, namespace, checkpoint_id, task_id, idx, channel, FORMAT, blob, task_path)
            )
        if self._sink is None:
            address = (self._org_id, thread_id, namespace, checkpoint_id, task_id, task_path)
            columns = ([r.idx for r in rows], [r.channel for r in rows], [r.value for r in rows])
            await self._pool.execute(SQL.put_writes, *address, FORMAT, *columns)
            return
        if from_held:
            self._release(self._sink, thread_id, namespace)
        self._staged.add(thread_id)
        stopped = any(channel in _NO_OUTPUT for channel, _ in writes)
        self._sink.stage_writes(rows, None if stopped else task_path.rpartition(", ")[2])

    def _release(self, sink: CheckpointSink, thread_id: str, namespace: str) -> None:
        held = self._held.pop((thread_id, namespace), None)
        if held is not None:
            self._staged.add(thread_id)
            sink.stage_checkpoint(held)

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that `config` names, or its thread's newest, with its pending writes; None if there is
        none. What this saver has staged for the thread is committed first.

        Raises:
            CheckpointRefused: the stored bytes are not ours.
            LeaseLost: something was staged, and the run belongs to another worker by now.
        """
        thread_id, namespace = _thread(config)
        if self._sink is not None:
            self._release(self._sink, thread_id, namespace)
            if thread_id in self._staged:
                await self._sink.committed()
            elif self._fresh:
                return None
        checkpoint_id = get_checkpoint_id(config)
        arguments = (self._org_id, thread_id, namespace, checkpoint_id)
        row = await patiently(lambda: self._pool.fetchrow(SQL.get_checkpoint, *arguments))
        return None if row is None else self._tuple(row, _load_dict(row, "metadata"))

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Committed checkpoints, newest first: of a thread, of one of its namespaces, or of the whole org.

        Args:
            filter: keys and values that the metadata must hold.
            before: names a checkpoint; only older ones are given.
            limit: how many at most.
        """
        conf = config["configurable"] if config is not None else {}
        scope = [conf.get(key) for key in ("thread_id", "checkpoint_ns", "checkpoint_id")]
        scope.append(get_checkpoint_id(before) if before is not None else None)
        end: list[str | None] = [None, None, None]
        left = limit
        while left is None or left > 0:
            size = _PAGE if left is None or filter else min(left, _PAGE)
            rows = await self._pool.fetch(SQL.list_checkpoints, self._org_id, *scope, *end, size)
            for row in rows:
                metadata = _load_dict(row, "metadata")
                if filter and any(key not in metadata or metadata[key] != filter[key] for key in filter):
                    continue
                yield self._tuple(row, metadata)
                if left is not None:
                    left -= 1
                    if left == 0:
                        return
            if len(rows) < size:
                return
            end = [rows[-1][key] for key in ("checkpoint_id", "thread_id", "checkpoint_ns")]

    def _tuple(self, row: asyncpg.Record, metadata: dict[str, Any]) -> CheckpointTuple:
        thread_id, namespace, checkpoint_id = row["thread_id"], row["checkpoint_ns"], row["checkpoint_id"]
        where = f"checkpoint {checkpoint_id} of thread {thread_id}"
        checkpoint = _load_dict(row, "checkpoint")
        if checkpoint.get("id") != checkpoint_id:
            raise CheckpointRefused(f"{where} holds the state of another")
        parent_id = row["parent_id"]
        return CheckpointTuple(
            _address(thread_id, namespace, checkpoint_id),
            cast(Checkpoint, checkpoint),
            cast(CheckpointMetadata, metadata),
            _address(thread_id, namespace, parent_id) if parent_id is not None else None,
            [
                (task_id, channel, _load(format, value, f"a write to {channel!r} at {where}"))
                for task_id, channel, format, value in row["writes"] or ()
            ],
        )

    async def adelete_thread(self, thread_id: str) -> None:
        """Removes a thread with all its namespaces."""
        await self._pool.execute(SQL.delete_threads, self._org_id, [thread_id])

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Removes what these runs have stored."""
        await self._pool.execute(SQL.delete_runs, self._org_id, list(run_ids))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copies a thread with all its namespaces and writes. What the target has already stays as it is."""
        await self._pool.execute(SQL.copy_thread, self._org_id, source_thread_id, target_thread_id)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Removes all but each namespace's newest checkpoint ("keep_latest"), or everything ("delete")."""
        if strategy not in ("keep_latest", "delete"):
            raise ValueError(f"unknown strategy {strategy!r}: use 'keep_latest' or 'delete'")
        statement = SQL.keep_latest if strategy == "keep_latest" else SQL.delete_threads
        await self._pool.execute(statement, self._org_id, list(thread_ids))


def _load_dict(row: asyncpg.Record, column: str) -> dict[str, Any]:
    what = f"the {column} of checkpoint {row['checkpoint_id']} of thread {row['thread_id']}"
    value = _load(row["format"], row[column], what)
    if not isinstance(value, dict):
        raise CheckpointRefused(f"{what} is no dictionary")
    return value


def _thread(config: RunnableConfig) -> tuple[str, str]:
    conf = config["configurable"]
    return str(conf["thread_id"]), conf.get("checkpoint_ns", "")


def _address(thread_id: str, namespace: str, checkpoint_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": namespace, "checkpoint_id": checkpoint_id}}
