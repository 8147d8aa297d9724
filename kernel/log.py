"""Logs: one line per entry on stderr, JSON unless a person reads along.

What always holds: no secret leaves the process this way. Values under names that sound like secrets are
replaced, and so is whatever looks like an API key, a bearer token, a token in a URL or a password in one,
wherever in the line it stands. Libraries that log through the standard library come out the same way.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import orjson
import structlog
from pydantic import SecretStr
from structlog.typing import EventDict, WrappedLogger

from kernel.settings import Settings

_HIDDEN: Final = "[redacted]"
_SECRET_NAME: Final = re.compile(
    r"(?:^|[_-])(?:password|passwd|secret|secret_key|token|authorization|api_?key|cookie|credentials?|"
    r"private_key|jwt_key|dsn|database_url|redis_url)$",
    re.IGNORECASE,
)
_SECRET_TEXT: Final = re.compile(
    r"lh_[0-9a-f]{32}_[A-Za-z0-9_-]+"
    r"|(?<=://)[^/@\s\"]*:[^/@\s\"]+(?=@)"
    r"|(?<=[Bb]earer )[A-Za-z0-9._~+/=-]+"
    r"|(?<=[?&]token=)[^&\s\"]+"
    r"|eyJ[A-Za-z0-9_-]+\.eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+"
)
# What a text must hold for the pattern above to find anything: looking for these is twenty times cheaper.
_SECRET_MARKS: Final = ("lh_", "://", "earer ", "token=", "eyJ")


def configure_logs(settings: Settings) -> None:
    """Sets logging up for the whole process; called once, by its composition root."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        hide_secrets,
    ]
    rendered: list[structlog.typing.Processor]
    if settings.log_format == "json":
        rendered = [structlog.processors.format_exc_info, _render_json]
    else:
        rendered = [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                exception_formatter=structlog.dev.plain_traceback,  # the rich one prints local variables
            ),
            _scrub_line,
        ]
    structlog.configure(
        processors=[*shared, *rendered],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(level, logging.INFO), force=True)


def hide_secrets(_logger: WrappedLogger, _method: str, entry: EventDict) -> EventDict:
    """Replaces the values of names that sound like secrets, at any depth. Counts of tokens are numbers: they stay."""
    return {name: _hidden(name, value) for name, value in entry.items()}


def scrub(text: str) -> str:
    """`text` with everything replaced that looks like a credential."""
    if any(mark in text for mark in _SECRET_MARKS):
        return _SECRET_TEXT.sub(_HIDDEN, text)
    return text


@lru_cache(maxsize=1024)
def _is_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


def _hidden(name: str, value: Any) -> Any:
    if isinstance(value, str | bytes):
        return _HIDDEN if _is_secret(name) else value
    if isinstance(value, SecretStr):
        return _HIDDEN
    if isinstance(value, dict | Mapping):  # the first is found faster
        return {key: _hidden(str(key), item) for key, item in value.items()}
    return value


def _render_json(_logger: WrappedLogger, _method: str, entry: EventDict) -> str:
    return scrub(orjson.dumps(entry, default=repr, option=orjson.OPT_NON_STR_KEYS).decode())


def _scrub_line(_logger: WrappedLogger, _method: str, line: Any) -> str:
    return scrub(str(line))
