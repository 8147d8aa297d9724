"""The worker process: `python -m worker`.

The composition root: builds everything from the settings and hands it down. SIGTERM and SIGINT drain: nothing new
is claimed, runs get the grace period to end or to finish their step, then they are handed back; the exit code is 0.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial

import structlog
import uvloop
from redis.asyncio import Redis

from kernel.bell import Bell
from kernel.errors import BadSettings, LonghaulError
from kernel.fanout import Publisher
from kernel.files import Files
from kernel.jobs import forget_old_jobs
from kernel.journal import Journal
from kernel.leases import Leases
from kernel.log import configure_logs
from kernel.postgres import STORE_ERRORS, close_pool, open_pool
from kernel.prices import Prices
from kernel.sealing import Sealer
from kernel.settings import Settings, load_settings
from memory.host import MemoryHost, open_memory
from memory.store import PostgresMemory
from memory.upkeep import FILL, UPKEEP, ask_for_upkeep
from orchestrator.bus import EventBus, TellingPublisher
from orchestrator.egress import EgressClient
from orchestrator.engine import Engine
from orchestrator.extraction.requests import Requests
from orchestrator.host import PluginHost
from orchestrator.measures import Measures
from orchestrator.middleware.chain import Chain
from orchestrator.models.factory import Models
from orchestrator.models.plugin import installed_providers
from orchestrator.vault import RunVault
from orchestrator.window.windows import Windows
from orchestrator.workflows import GRAPH_VERSION
from worker.background import background, burials
from worker.charges import Charges
from worker.chores import Chores
from worker.doorbell import Doorbell
from worker.equipment import equip
from worker.executor import Executor
from worker.heartbeat import Heartbeat
from worker.jobs import Jobs
from worker.plugins import make_middleware, plugged_handlers, plugged_workflows
from worker.retention import Policies, Retention
from worker.vigil import Vigil

log = structlog.get_logger(__name__)

_FAREWELL_SECONDS = 2.0


async def work(settings: Settings) -> None:
    """Runs until a signal asks it to stop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    worker_id = f"{socket.gethostname()}:{os.getpid()}"
    database_url = settings.database_url.get_secret_value()
    async with AsyncExitStack() as stack:
        # What Postgres is asked for must be answered in time to be asked again within a lease.
        patience = max(5.0, settings.lease_seconds / 2)
        db = await open_pool(database_url, size=settings.database_pool, name="longhaul worker", answer_within=patience)
        stack.push_async_callback(close_pool, db)
        redis_url = settings.redis_url.get_secret_value()
        redis = _open_redis(redis_url, answer_within=5)
        stack.push_async_callback(redis.aclose)
        # Bells are waited for longer than any other answer may take.
        waiting = _open_redis(redis_url, answer_within=15)
        stack.push_async_callback(waiting.aclose)
        bell = Bell(redis)
        stack.push_async_callback(bell.aclose)

        memory = await stack.enter_async_context(open_memory(MemoryHost(settings, db, redis)))
        egress = EgressClient(allow=settings.egress_allow)
        stack.push_async_callback(egress.aclose)
        host = PluginHost(settings, db, redis, egress, Measures(), memory)
        outfitter = equip(settings, db, memory, stack, host)
        chain = Chain(make_middleware(host))
        stack.push_async_callback(chain.aclose)
        models = Models(settings, providers=installed_providers())
        stack.push_async_callback(models.aclose)
        models.warm()

        bus = EventBus(handlers, host.measures) if (handlers := plugged_handlers(host)) else None
        publisher = Publisher(redis) if bus is None else TellingPublisher(redis, bus)
        leases = Leases(db, worker=worker_id, lease_seconds=settings.lease_seconds, graph_version=GRAPH_VERSION)
        # A run that ends may let the next one of its session start: this worker looks for it itself.
        journal = Journal(db, publisher, on_next_run=lambda: executor.woken())
        sealer = Sealer.of(settings.sealing_keys, settings.secret_key)
        windows = Windows(db, redis, ttl=settings.window_ttl)
        engine = Engine(
            db,
            models=models,
            outfitter=outfitter,
            memory=memory,
            vault_of=lambda run: RunVault(db, sealer, run.org_id, run.id),
            chain=chain,
            workflows=plugged_workflows(host),
            prices=Prices.read(settings.prices),
            windows=windows,
        )
        charges = Charges(db)
        vigil = Vigil()
        extractions = Requests(db, default=settings.extract)
        executor = Executor(
            leases=leases,
            journal=journal,
            engine=engine,
            charges=charges,
            vigil=vigil,
            slots=settings.slots,
            ring=bell.ring,
            after=extractions.after,
        )
        stack.push_async_callback(executor.abandon)
        heartbeat = Heartbeat(
            executor,
            journal,
            publisher,
            vigil,
            database_url=database_url,
            worker=worker_id,
            host=socket.gethostname(),
            lease_seconds=settings.lease_seconds,
            renew_seconds=settings.lease_renew_seconds,
            measures=host.measures,
        )
        files = Files.from_settings(settings, db) if settings.files_url else None
        retention = Retention(db, Policies.from_settings(settings), files=files)
        regular: list[Callable[[], Awaitable[object]]] = [extractions.sweep]
        if isinstance(memory, PostgresMemory):
            regular.append(partial(ask_for_upkeep, db))  # which forgets old jobs too
        else:
            regular.append(partial(forget_old_jobs, db))
        jobs = Jobs(
            db,
            background(
                settings=settings,
                db=db,
                memory=memory,
                models=models,
                windows=windows,
                vault_of=lambda org_id, run_id: RunVault(db, sealer, org_id, run_id),
                measures=host.measures,
            ),
            worker=worker_id,
            apart=(UPKEEP, FILL),
            buried=burials(settings=settings, db=db, memory=memory),
        )
        if bus is not None:
            bus.start()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(publisher.run(), name="publisher")
            tasks.create_task(journal.run(), name="journal")
            tasks.create_task(executor.run(), name="executor")
            charging = tasks.create_task(charges.run(), name="charges")
            listening = [
                tasks.create_task(Doorbell(waiting, executor).run(), name="doorbell"),
                tasks.create_task(Chores(redis, executor, retention, regular).run(), name="chores"),
                tasks.create_task(jobs.run(), name="jobs"),
            ]
            heartbeat.start()
            log.info("worker_started", worker=worker_id, slots=settings.slots)
            await stop.wait()
            log.info("worker_draining", running=len(executor.running), grace=settings.grace_seconds)
            for task in listening:
                task.cancel()
            await executor.drain(settings.grace_seconds, settings.effect_grace_seconds)
            await heartbeat.stop()
            charging.cancel()
            await _say_goodbye(charges, leases)
            journal.close()
            publisher.close()
        if bus is not None:
            await bus.aclose()
    log.info("worker_stopped", worker=worker_id)
    if executor.stuck or (bus is not None and bus.stuck):
        # The event loop would wait for them for ever.
        log.error("worker_left_stuck_runs", runs=executor.stuck)
        os._exit(0)


async def _say_goodbye(charges: Charges, leases: Leases) -> None:
    """What Postgres is told last, if it listens: nothing is lost otherwise."""
    try:
        async with asyncio.timeout(_FAREWELL_SECONDS):
            await charges.flush()
            await leases.sign_off()
    except STORE_ERRORS as error:
        log.warning("sign_off_failed", error=repr(error))


def _open_redis(url: str, *, answer_within: float) -> Redis:
    """A client that notices when the server has gone silent: no answer may take longer than `answer_within` seconds."""
    keepalive = {} if url.startswith("unix:") else {"socket_keepalive": True}
    client: Redis = Redis.from_url(
        url, socket_connect_timeout=3, socket_timeout=answer_within, health_check_interval=10, **keepalive
    )
    return client


def main() -> None:
    """Entry point. Exit code 2: the environment or a plug-in is wrong; 1: something that must not break has broken."""
    try:
        settings = load_settings()
    except LonghaulError as error:
        print(error.message, file=sys.stderr)  # noqa: T201  # there is no log before there are settings
        sys.exit(2)
    configure_logs(settings)
    try:
        uvloop.run(work(settings))
    except LonghaulError as error:
        log.error("worker_failed", error=error.message, suggestions=error.suggestions)
        sys.exit(2 if isinstance(error, BadSettings) else 1)
    except BaseException:
        log.exception("worker_failed")
        sys.exit(1)


if __name__ == "__main__":
    main()
