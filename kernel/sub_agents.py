"""References to other agents as sub-agents, when a configuration that holds them is saved.

Each is pinned to a version there and then, so a run of the one never changes because the other does. No agent may get
a task from itself, however far down: that is told from the agents' ids, whatever their versions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kernel.agent_config import MAX_NESTING, AgentConfig, SubAgent, SubAgentConfig, SubAgentRef
from kernel.errors import InvalidInput
from kernel.postgres import Connection
from kernel.sql import statements

SQL = statements(__package__, "agents.sql")

_Key = tuple[str, int | None]
"""An agent's id and version; None: the newest."""


@dataclass(frozen=True, slots=True)
class _Found:
    version: int
    config: AgentConfig


@dataclass(frozen=True, slots=True)
class _Task:
    """A reference that is to be looked at. `field` is where the caller wrote it, or what leads to it; `chain` are the
    agents above it by (id, name), the outermost first, and `level` how deep it is."""

    ref: SubAgentRef
    field: str
    chain: tuple[tuple[str | None, str], ...]
    level: int


async def pinned(connection: Connection, org_id: str, config: AgentConfig, agent_id: str | None = None) -> AgentConfig:
    """`config` with all its references pinned, and with what those agents say of themselves where it says nothing.

    Args:
        agent_id: the agent's own id, None for one that is being made.

    Raises:
        InvalidInput: an agent or version that the org has not, an agent below itself, or too many levels; `field` is
            the path of the reference.
    """
    tasks = list(_references(config.sub_agents, "sub_agents", ((agent_id, config.name),), 1))
    if not tasks:
        return config
    known: dict[_Key, _Found] = {}
    while tasks:
        await _look_up(connection, org_id, known, tasks)
        below: list[_Task] = []
        for task in tasks:
            ref, field = task.ref, task.field
            found = known.get((ref.agent_id, ref.version))
            if found is None:
                which = ref.agent_id if ref.version is None else f"{ref.agent_id} with a version {ref.version}"
                raise InvalidInput(f"There is no agent {which}.", field=f"{field}.agent_id")
            chain = (*task.chain, (ref.agent_id, found.config.name))
            if ref.agent_id in (above for above, _ in task.chain):
                shown = " → ".join(name for _, name in chain)
                raise InvalidInput(f"An agent can't be below itself: {shown}.", field=f"{field}.agent_id")
            below += _references(found.config.sub_agents, field, chain, task.level + 1, written=False)
        tasks = below
    return config.model_copy(update={"sub_agents": _with_versions(config.sub_agents, known)})


def _references(
    sub_agents: Sequence[SubAgent],
    field: str,
    chain: tuple[tuple[str | None, str], ...],
    level: int,
    *,
    written: bool = True,
) -> list[_Task]:
    """The references among `sub_agents` and below those that are configured in place."""
    found = []
    for place, one in enumerate(sub_agents):
        at = f"{field}.{place}" if written else field
        if level > MAX_NESTING:
            names = " → ".join([*(name for _, name in chain), one.name])
            raise InvalidInput(f"Sub-agents may be nested at most {MAX_NESTING} levels deep: {names}.", field=at)
        if isinstance(one, SubAgentRef):
            found.append(_Task(one, at, chain, level))
        else:
            inner = f"{at}.sub_agents" if written else at
            found += _references(one.sub_agents, inner, (*chain, (None, one.name)), level + 1, written=written)
    return found


async def _look_up(connection: Connection, org_id: str, known: dict[_Key, _Found], tasks: Sequence[_Task]) -> None:
    wanted = list({(task.ref.agent_id, task.ref.version) for task in tasks} - known.keys())
    if not wanted:
        return
    rows = await connection.fetch(SQL.referred, org_id, [id for id, _ in wanted], [version for _, version in wanted])
    for row in rows:
        config = AgentConfig.model_validate_json(row["config"])
        known[row["id"], row["asked"]] = _Found(row["version"], config)


def _with_versions(sub_agents: Sequence[SubAgent], known: dict[_Key, _Found]) -> list[SubAgent]:
    changed: list[SubAgent] = []
    for one in sub_agents:
        if isinstance(one, SubAgentConfig):
            changed.append(one.model_copy(update={"sub_agents": _with_versions(one.sub_agents, known)}))
            continue
        found = known[one.agent_id, one.version]
        update: dict[str, Any] = {"version": found.version}
        if not one.description:
            update["description"] = found.config.description
        changed.append(one.model_copy(update=update))
    return changed
