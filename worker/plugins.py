"""What a worker takes from plug-ins: loaded once, at its start, and all of it or the worker does not start."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeVar

from langgraph.graph.state import CompiledStateGraph

from kernel.errors import BadSettings
from kernel.plugins import BadPlugin, Plugin, allowed_paths, plugins
from kernel.workflows import BUILT_IN_WORKFLOWS
from orchestrator.bus import EventHandler, unknown_types
from orchestrator.graph import Graph, build_graph
from orchestrator.host import PluginHost
from orchestrator.middleware.builtin import BUILT_IN, built_in
from orchestrator.middleware.middleware import Middleware
from orchestrator.skills.skill import Skill
from orchestrator.tools.tool import Tool
from orchestrator.tools.toolbox import Toolbox

T = TypeVar("T")


def plugged_tools(host: PluginHost, taken: Collection[str] = ()) -> list[Tool[Any]]:
    """Tools of distributions, and those that the operator named by their paths. `taken` are the names of others."""

    def made(plugin: Plugin) -> Tool[Any]:
        tool = plugin.make(_a_tool, "a Tool", host)
        try:
            Toolbox([tool])
        except Exception as error:
            raise plugin.bad(f"its tool is not valid: {error}") from error
        return tool

    found = [*plugins("tools").values(), *allowed_paths(host.settings.tools)]
    return _distinct(found, made, lambda tool: tool.name, taken)


def plugged_skills(host: PluginHost, taken: Collection[str] = ()) -> list[Skill]:
    """Skills of distributions."""
    return _distinct(
        plugins("skills").values(),
        lambda plugin: plugin.make(lambda found: found if isinstance(found, Skill) else None, "a Skill", host),
        lambda skill: skill.name,
        taken,
    )


def plugged_workflows(host: PluginHost) -> dict[str, Graph]:
    """Workflows of distributions by name: graphs as `build_graph` makes them, or the THINK state of one."""
    found = plugins("workflows")
    for name in BUILT_IN_WORKFLOWS:
        if name in found:
            raise found[name].bad("a workflow of Longhaul has this name")
    return dict(_all(found.values(), lambda plugin: (plugin.name, plugin.make(_a_graph, "a workflow", host))))


def make_middleware(host: PluginHost) -> dict[str, Middleware]:
    """The configured middleware by name, the outermost first."""
    found = plugins("middleware")
    for name in BUILT_IN:
        if name in found:
            raise found[name].bad("a middleware of Longhaul has this name")
    names = host.settings.middleware
    wrong = [name for name in names if name not in BUILT_IN and name not in found]
    if wrong or len(set(names)) < len(names):
        what = f"there is no middleware {', '.join(map(repr, wrong))}" if wrong else "one is named twice"
        raise BadSettings(
            f"LONGHAUL_MIDDLEWARE: {what}.", suggestions=(f"there are: {', '.join([*BUILT_IN, *found])}",)
        )

    def made(plugin: Plugin) -> Middleware:
        return plugin.make(lambda it: it if isinstance(it, Middleware) else None, "a Middleware", host)

    return {name: built_in(name, host) if name in BUILT_IN else made(found[name]) for name in names}


def plugged_handlers(host: PluginHost) -> dict[str, EventHandler]:
    """Event handlers of distributions by name."""

    def made(plugin: Plugin) -> tuple[str, EventHandler]:
        handler = plugin.make(
            lambda found: found if isinstance(found, EventHandler) else None,
            "an event handler (with `types` and `handle`)",
            host,
        )
        try:
            wrong = unknown_types(handler)
        except TypeError:
            raise plugin.bad("its `types` are no collection of names") from None
        if wrong:
            raise plugin.bad(f"there are no events of the types {', '.join(map(repr, wrong))}")
        return plugin.name, handler

    return dict(_all(plugins("events").values(), made))


def _all(found: Iterable[Plugin], made: Callable[[Plugin], T]) -> list[T]:
    """All that are made; if some can't be, one error that names each of them."""
    things: list[T] = []
    bad: list[BadPlugin] = []
    for plugin in found:
        try:
            things.append(made(plugin))
        except BadPlugin as error:
            bad.append(error)
    if bad:
        raise BadPlugin(
            "\n".join(error.message for error in bad),
            suggestions=tuple(dict.fromkeys(suggestion for error in bad for suggestion in error.suggestions)),
        )
    return things


def _distinct(
    found: Iterable[Plugin], made: Callable[[Plugin], T], name_of: Callable[[T], str], taken: Collection[str]
) -> list[T]:
    owners: dict[str, str] = dict.fromkeys(taken, "Longhaul")

    def first_of_its_name(plugin: Plugin) -> T:
        thing = made(plugin)
        name = name_of(thing)
        if name in owners:
            raise plugin.bad(f"the name {name!r} is taken by one of {owners[name]}")
        owners[name] = plugin.origin
        return thing

    return _all(found, first_of_its_name)


def _a_tool(found: object) -> Tool[Any] | None:
    return found if isinstance(found, Tool) else None


def _a_graph(found: object) -> Graph | None:
    if isinstance(found, CompiledStateGraph):
        return found
    if inspect.iscoroutinefunction(found) and len(inspect.signature(found).parameters) == 2:
        return build_graph(found)
    return None
