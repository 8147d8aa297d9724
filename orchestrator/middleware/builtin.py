"""The middleware that comes with Longhaul, by name; a module is imported when its middleware is configured."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Final

from orchestrator.host import PluginHost
from orchestrator.middleware.middleware import Middleware

BUILT_IN: Final[Mapping[str, str]] = MappingProxyType(
    {
        "logging": "logs:Logging",
        "validation": "validation:Validation",
        "rate_limit": "rate_limit:RateLimit",
        "cache": "cache:Cache",
        "metrics": "metrics:Metrics",
        "tracing": "tracing:Tracing",
        "audit": "audit:Audit",
    }
)


def built_in(name: str, host: PluginHost) -> Middleware:
    """Makes one of them.

    Raises:
        BadSettings: it needs something that is not installed.
    """
    module, _, attribute = BUILT_IN[name].partition(":")
    made = getattr(import_module(f"orchestrator.middleware.{module}"), attribute)(host)
    assert isinstance(made, Middleware)
    return made
