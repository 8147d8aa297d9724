"""The error tree of the orchestrator, named for who must act.

`ModelError` and its children: the model endpoint did not give an answer. They say in words that are safe to
show what happened, whether the same call may succeed later (`retryable`), and what to do about it. They
never hold a key, a header or more of a response than a short redacted excerpt of the endpoint's own error
message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from kernel.errors import LonghaulError


class ModelError(LonghaulError):
    """The model endpoint did not answer as it should. `retryable`: the same call may succeed later."""

    code = "model_error"
    retryable = False

    def __init__(self, message: str, *, retryable: bool | None = None, suggestions: Sequence[str] = ()) -> None:
        super().__init__(message, suggestions=suggestions)
        if retryable is not None:
            self.retryable = retryable


class ModelUnreachable(ModelError):
    """No connection: the name does not resolve, the port refuses, TLS fails, or it hung up before answering."""

    code = "model_unreachable"
    retryable = True


class ModelTimedOut(ModelError):
    """Too long without a connection (`connect`) or without a byte of the answer (`idle`)."""

    code = "model_timeout"
    retryable = True

    def __init__(self, message: str, *, phase: Literal["connect", "idle"], suggestions: Sequence[str] = ()) -> None:
        super().__init__(message, suggestions=suggestions)
        self.phase = phase


class ModelRateLimited(ModelError):
    """Too many calls for this key. `retry_after`: seconds that the endpoint asks to wait, where it says so."""

    code = "model_rate_limited"
    retryable = True

    def __init__(self, message: str, *, retry_after: float | None = None, suggestions: Sequence[str] = ()) -> None:
        super().__init__(message, suggestions=suggestions)
        self.retry_after = retry_after


class ModelRefused(ModelError):
    """The endpoint understood and declined: the key, the address, the model's name or the request must change.

    `status` is the HTTP status, or None where the refusal came inside an answer. `about` is what the refusal speaks
    of, as far as that is known: names of request fields, and `image`.
    """

    code = "model_refused"

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        about: frozenset[str] = frozenset(),
        suggestions: Sequence[str] = (),
    ) -> None:
        super().__init__(message, suggestions=suggestions)
        self.status = status
        self.about = about


class ImagesRefused(ModelRefused):
    """The model takes no images, and the conversation holds some."""

    code = "model_refuses_images"


class ModelMisconfigured(ModelError):
    """The choice of the model can't be used as it stands: whoever wrote the agent or the run must change it."""

    code = "model_misconfigured"


class ModelAddressRefused(ModelMisconfigured):
    """The choice names an address that may not be called: private, special, or no address at all."""

    code = "model_address_refused"


class UnknownProvider(ModelMisconfigured):
    """The choice names a provider that this worker has no plug-in for."""

    code = "unknown_provider"


class ProviderFailed(ModelError):
    """A plug-in's model did not answer: it raised something, or took too long."""

    code = "model_provider_failed"


class ModelOverloaded(ModelError):
    """The endpoint failed on its side (5xx, "overloaded"). `retry_after` as in `ModelRateLimited`."""

    code = "model_overloaded"
    retryable = True

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        suggestions: Sequence[str] = (),
    ) -> None:
        super().__init__(message, suggestions=suggestions)
        self.status = status
        self.retry_after = retry_after


class ModelGarbled(ModelError):
    """What came back is no chat completion: not HTTP, not SSE, not JSON, the wrong shape, or without bounds."""

    code = "model_garbled"


class ModelBrokeOff(ModelError):
    """The connection closed before the answer was complete."""

    code = "model_broke_off"
    retryable = True


class PromptTooLong(LonghaulError):
    """What the model would be told is too long to be sent. The caller must shorten it."""

    code = "prompt_too_long"


class BadResponseSchema(LonghaulError):
    """The agent's `response_schema` can't be used. Whoever wrote it must change it."""

    code = "bad_response_schema"


class InvalidAnswer(LonghaulError):
    """The model's final answer is not what `response_schema` asks for, also after corrections."""

    code = "invalid_answer"
