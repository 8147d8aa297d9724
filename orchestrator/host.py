"""What a plug-in of this worker gets to work with."""

from __future__ import annotations

from dataclasses import dataclass, field

from redis.asyncio import Redis

from kernel.postgres import Pool
from kernel.settings import Settings
from memory.port import Memory
from orchestrator.egress import EgressClient
from orchestrator.measures import Measures


@dataclass(frozen=True, slots=True)
class PluginHost:
    """Given to plug-ins that are made by a function with one argument.

    All of it belongs to the worker: close nothing. `egress` is the way to the outside that refuses private addresses;
    Redis may be away, and forget all that is in it, at any time.
    """

    settings: Settings = field(repr=False)
    db: Pool = field(repr=False)
    redis: Redis = field(repr=False)
    egress: EgressClient = field(repr=False)
    measures: Measures = field(repr=False)
    memory: Memory = field(repr=False)
