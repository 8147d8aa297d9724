"""Plug-ins: parts of other distributions that this process can use, found by their entry points.

A distribution declares them in its metadata, so they can be listed without importing anything: the API knows the
names of workflows without loading one. A worker loads what it uses at its start. One that can't be loaded keeps the
worker from starting: half of what was configured is worse than an error that says what to do.

Every process sees the same plug-ins for as long as it runs.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Final, Literal, TypeAlias, TypeVar, get_args

from kernel.errors import BadSettings

PluginGroup: TypeAlias = Literal["skills", "tools", "workflows", "models", "memory", "middleware", "events"]
PLUGIN_GROUPS: Final[tuple[PluginGroup, ...]] = get_args(PluginGroup)

T = TypeVar("T")
Made: TypeAlias = Callable[[object], "T | None"]
"""Takes what a plug-in gave and returns it as what it has to be, or None if it is something else."""


class BadPlugin(BadSettings):
    """A plug-in can't be used. Says which one, of which distribution, and why."""

    code = "bad_plugin"


@dataclass(frozen=True, slots=True)
class Plugin:
    """One entry point. `target` is `package.module:name`; `distribution` and `version` say where it comes from, and are
    empty where an operator named the target."""

    group: PluginGroup
    name: str
    target: str
    distribution: str
    version: str

    @property
    def origin(self) -> str:
        """Where it comes from, such as `acme-parcels 1.2`."""
        return f"{self.distribution} {self.version}".strip() or "LONGHAUL_TOOLS"

    def load(self) -> object:
        """Imports it; what its target names.

        Raises:
            BadPlugin: it can't be imported.
        """
        module, _, path = self.target.partition(":")
        try:
            found: object = importlib.import_module(module.strip())
            for attribute in path.split("[")[0].strip().split("."):
                found = getattr(found, attribute)
        # A module may do anything while it is imported, exit included.
        except (Exception, SystemExit) as error:
            raise self.bad(f"{self.target} can't be imported: {_in_words(error)}") from error
        return found

    def make(self, wanted: Made[T], what: str, host: object = None) -> T:
        """Loads it and makes of it what its group holds.

        The target is that thing, or a class or function that gives it: called with `host` if it takes an argument,
        else with none.

        Args:
            wanted: recognises the thing.
            what: the thing in words, such as "a Tool".

        Raises:
            BadPlugin: it can't be imported, breaks when it is called, or gives something else.
        """
        found = self.load()
        thing = None if inspect.isclass(found) else wanted(found)
        if thing is None and callable(found):
            try:
                given = found(host) if _takes_host(found) else found()
            except (Exception, SystemExit) as error:
                raise self.bad(f"{self.target} broke when it was called: {_in_words(error)}") from error
            if inspect.iscoroutine(given):
                given.close()
                raise self.bad(f"{self.target} is asynchronous; a plug-in is made by a plain function or a class")
            thing = wanted(given)
            found = given
        if thing is None:
            raise self.bad(f"{self.target} gives {_named(found)} where {what} is needed")
        return thing

    def bad(self, why: str) -> BadPlugin:
        """The error that says why this one can't be used."""
        return BadPlugin(
            f"The plug-in {self.name!r} (longhaul.{self.group}, {self.origin}) can't be used: {why}.",
            suggestions=(
                f"repair or uninstall {self.distribution}" if self.distribution else "correct LONGHAUL_TOOLS",
                "`longhaul doctor` shows what is loaded and what is not",
            ),
        )


def plugins(group: PluginGroup) -> Mapping[str, Plugin]:
    """The plug-ins of a group by name, in the order of their names. Imports none of them.

    Raises:
        BadPlugin: two distributions give one name.
    """
    found: dict[str, Plugin] = {}
    for entry in sorted(entry_points(group=f"longhaul.{group}"), key=lambda entry: (entry.name, _origin(entry))):
        plugin = Plugin(group, entry.name, entry.value, *_origin(entry))
        if (twin := found.setdefault(entry.name, plugin)) is not plugin:
            raise BadPlugin(
                f"Two plug-ins of longhaul.{group} are named {entry.name!r}: of {twin.origin} and of {plugin.origin}.",
                suggestions=("uninstall one of the two distributions",),
            )
    return found


def allowed_paths(paths: Sequence[str]) -> Iterable[Plugin]:
    """Tools that an operator named as dotted paths, `package.module:Class`; their names are the paths."""
    return [Plugin("tools", path, path, "", "") for path in paths]


def _origin(entry: EntryPoint) -> tuple[str, str]:
    return (entry.dist.name, entry.dist.version) if entry.dist is not None else ("", "")


def _takes_host(factory: Callable[..., object]) -> bool:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # a builtin that doesn't say
        return False
    return any(
        parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        for parameter in parameters
    )


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().rstrip(".")


def _named(found: object) -> str:
    if inspect.isclass(found):
        return f"the class {found.__qualname__}"
    return f"a {type(found).__name__}" if found is not None else "nothing"
