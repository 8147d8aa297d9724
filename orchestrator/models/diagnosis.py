"""What a failed model call means: from a status, an error object or an exception to a `ModelError`.

One place, so that every failure says in the same words what happened and which setting helps. Messages are
safe to show: they hold the endpoint's origin (never its path or credentials) and at most 200 characters of
the error message that the endpoint gave, after everything that looks like a key is struck out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import orjson

from orchestrator.errors import (
    ModelBrokeOff,
    ModelError,
    ModelGarbled,
    ModelOverloaded,
    ModelRateLimited,
    ModelRefused,
    ModelTimedOut,
    ModelUnreachable,
)

EXCERPT = 200  # characters

OPTIONAL_FIELDS = ("max_completion_tokens", "stream_options", "response_format")
"""Fields of a request that not every endpoint takes."""

_KEY_LIKE = re.compile(
    r"""(?ix)
      \b(?:bearer|basic)\s+\S+                                   # an Authorization header
    | \b(?:sk|pk|rk|gsk|xai|lsv2|hf|r8|fw|nvapi|key)[-_][\w*.-]{4,}  # with a well-known prefix
    | [\w.-]*\*{3,}[\w.*-]*                                      # masked already
    | (?<!\w)(?=\w*\d)(?=\w*[a-z])\w{24,}(?!\w)                # a long run of letters and digits
    | (?<![\w-])(?=[\w-]*\d)[\w-]{40,}(?![\w-])
    """
)
_ABOUT_IMAGES = re.compile(rb"(?i)image|vision|multi-?modal")


@dataclass(frozen=True, slots=True)
class Wording:
    """What the settings of an endpoint are called by those who can change them."""

    key: str
    base: str
    model: str
    idle: str


OPERATORS = Wording(
    key="OPENAI_API_KEY",
    base="OPENAI_BASE_URL",
    model="LLM_MODEL (or the agent's model)",
    idle="LONGHAUL_MODEL_IDLE_TIMEOUT (or the model's idle_timeout_seconds)",
)
CALLERS = Wording(
    key="the secret that the model's api_key names",
    base="the model's base_url",
    model="the model's name",
    idle="the model's idle_timeout_seconds",
)

# Suggestions, with the names of settings to be filled in.
_KEY = "Set {key} to a valid key for this endpoint."
_BASE = "Set {base} to the address of an OpenAI-compatible API; most end in /v1."
_MODEL = "Set {model} to a model that this endpoint offers."
_LATER = "Try again later."
_REQUEST = (
    "Shorten the input, or choose a model with a larger context in {model}.",
    "Check that the model in {model} supports what the agent uses, such as tools.",
)
_REFUSALS: dict[int, tuple[str, tuple[str, ...]]] = {
    400: ("did not accept the request", _REQUEST),
    401: ("does not accept the API key", (_KEY,)),
    402: ("asks for payment", ("Check the plan and the balance of the account behind {key}.",)),
    403: ("does not allow this", ("Check what the account behind {key} may use.", _MODEL)),
    404: ("does not know this model or address", (_MODEL, _BASE)),
    413: ("finds the request too large", _REQUEST),
    422: ("did not accept the request", _REQUEST),
}
_STATUS_OF = {
    "insufficient_quota": 402,
    "invalid_api_key": 401,
    "authentication_error": 401,
    "permission_error": 403,
    "model_not_found": 404,
    "not_found_error": 404,
    "context_length_exceeded": 400,
    "invalid_request_error": 400,
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "requests": 429,
    "tokens": 429,
}


class Diagnosis:
    """Knows the endpoint it speaks of, and the key that must not appear in what it says."""

    __slots__ = ("_key", "_where", "_words")

    def __init__(self, origin: str, key: str, words: Wording = OPERATORS) -> None:
        self._where = f"The model endpoint at {origin}"
        self._key = key
        self._words = words

    def of_response(self, status: int, headers: Mapping[str, str], body: bytes) -> ModelError:
        """An HTTP answer that is not 2xx. `body` may be cut off."""
        try:
            document: Any = orjson.loads(body)
        except orjson.JSONDecodeError:
            document = None
        error = document.get("error", document) if isinstance(document, dict) else document
        about = {name for name in OPTIONAL_FIELDS if name.encode() in body}
        if _ABOUT_IMAGES.search(body):
            about.add("image")
        return self._of_status(status, error, retry_after=_retry_after(headers), about=frozenset(about))

    def of_error_object(self, error: object) -> ModelError:
        """An error object where an answer was expected, also in the middle of a stream."""
        names = (error.get("code"), error.get("type")) if isinstance(error, dict) else ()
        for name in names:
            if isinstance(name, int) and 400 <= name <= 599:
                return self._of_status(name, error)
            if isinstance(name, str) and name.isdecimal() and 400 <= int(name[:9]) <= 599:
                return self._of_status(int(name), error)
            if isinstance(name, str) and name in _STATUS_OF:
                return self._of_status(_STATUS_OF[name], error, inside=True)
        return ModelOverloaded(
            f"{self._where} reported an error in its answer{self._excerpt(error)}", suggestions=(_LATER,)
        )

    def of_exception(self, error: Exception) -> ModelError:
        """An exception of the HTTP client. Its own text is not shown: it may quote what was sent or received."""
        match error:
            case aiohttp.ConnectionTimeoutError():
                return ModelTimedOut(
                    f"{self._where} could not be connected to in time.",
                    phase="connect",
                    suggestions=self._told(_BASE, _LATER),
                )
            case TimeoutError():
                return ModelTimedOut(
                    f"{self._where} stayed silent for too long.",
                    phase="idle",
                    suggestions=self._told(_LATER, "Raise {idle} if this model needs longer."),
                )
            case aiohttp.ClientConnectorDNSError():
                return ModelUnreachable(
                    f"{self._where} can't be reached: its name does not resolve.", suggestions=self._told(_BASE)
                )
            case aiohttp.ClientSSLError():
                return ModelUnreachable(
                    f"{self._where} can't be reached: no secure connection could be made.",
                    retryable=False,
                    suggestions=self._told("Check the certificate of the endpoint, and http or https.", _BASE),
                )
            case aiohttp.ClientConnectorError():
                return ModelUnreachable(
                    f"{self._where} can't be reached: the connection was refused or lost.",
                    suggestions=self._told("Check that the endpoint is running.", _BASE),
                )
            case aiohttp.ClientResponseError():
                return ModelGarbled(f"{self._where} does not speak HTTP.", suggestions=self._told(_BASE))
            case _:
                return self.broke_off()

    def broke_off(self) -> ModelBrokeOff:
        """The connection ended before the answer did."""
        return ModelBrokeOff(
            f"{self._where} closed the connection before its answer was complete.", suggestions=(_LATER,)
        )

    def garbled(self, what: str) -> ModelGarbled:
        """The answer is no chat completion; `what` says in which way and quotes nothing of it."""
        return ModelGarbled(
            f"{self._where} gave an answer that is no chat completion: {what}.", suggestions=self._told(_BASE)
        )

    def _of_status(
        self,
        status: int,
        error: object,
        *,
        retry_after: float | None = None,
        inside: bool = False,
        about: frozenset[str] = frozenset(),
    ) -> ModelError:
        excerpt = self._excerpt(error)
        code = "" if inside else f" (HTTP {status})"
        if status == 429 and _names(error) & {"insufficient_quota", "billing_hard_limit_reached"}:
            status = 402
        if status == 429:
            return ModelRateLimited(
                f"{self._where} takes no more calls at the moment{code}{excerpt}",
                retry_after=retry_after,
                suggestions=self._told(_LATER, "Raise the rate limit of the account behind {key}."),
            )
        if status in (408, 409, 425) or status >= 500:
            return ModelOverloaded(
                f"{self._where} failed on its side{code}{excerpt}",
                status=status,
                retry_after=retry_after,
                suggestions=(_LATER,),
            )
        if status < 400:
            return ModelRefused(
                f"{self._where} points elsewhere instead of answering{code}.",
                status=status,
                suggestions=self._told("Set {base} to the final address; redirects are not followed."),
            )
        if status in (400, 422) and "model_not_found" in _names(error):
            status = 404
        what, suggestions = _REFUSALS.get(status, ("refused the call", (_BASE, _MODEL)))
        return ModelRefused(
            f"{self._where} {what}{code}{excerpt}",
            status=None if inside else status,
            about=about,
            suggestions=self._told(*suggestions),
        )

    def _told(self, *suggestions: str) -> tuple[str, ...]:
        words = self._words
        return tuple(
            text.format(key=words.key, base=words.base, model=words.model, idle=words.idle) for text in suggestions
        )

    def _excerpt(self, error: object) -> str:
        text = error
        if isinstance(error, dict):
            text = error.get("message") or error.get("detail") or ""
        if not isinstance(text, str) or not text.strip():
            return "."
        if len(self._key) >= 4:
            text = text.replace(self._key, "[redacted]")
        return ": " + excerpt(text)


def excerpt(text: str) -> str:
    """The beginning of what somebody else said, without anything that looks like a key."""
    text = _KEY_LIKE.sub("[redacted]", text[: 8 * EXCERPT])
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"


def _names(error: object) -> set[object]:
    if not isinstance(error, dict):
        return set()
    return {name for name in (error.get("code"), error.get("type")) if isinstance(name, str)}


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from `retry-after-ms` or `Retry-After` (seconds or a date, RFC 9110 §10.2.3)."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        if not text:
            continue
        try:
            seconds = float(text) * unit
        except ValueError:
            try:
                seconds = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
            except (ValueError, TypeError):  # no date, or one without a time zone
                continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    return None
