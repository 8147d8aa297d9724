"""The chat model: langchain-openai's request building and message types, with a lean reader for the stream.

The stock client reads 5,000 to 7,000 tokens a second where this reads some ten times that, because it
builds no object per token: events are cut from raw bytes and what arrives together becomes one delta.
`stream_turn` is the fast way in; LangChain's `astream`, `ainvoke` and `bind_tools` work as with any chat
model, on top of it.

A call is tried again only before its first delta, so that no text ever reaches a consumer twice.

An endpoint that refuses `response_format` is told the format in words instead; see `Terms` for what else is conceded.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, NoReturn, Self, TypeAlias

import orjson
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_openai import ChatOpenAI
from pydantic import Field, SecretStr

from orchestrator.errors import ImagesRefused, ModelError, ModelRefused
from orchestrator.models.endpoint import Answer, Endpoint
from orchestrator.models.provider import ResponseFormat
from orchestrator.models.reading import Reading
from orchestrator.models.retries import Retries
from orchestrator.models.terms import Terms
from orchestrator.models.turn import Piece, ReasoningDelta, TextDelta, Turn

_Piece: TypeAlias = TextDelta | ReasoningDelta | Turn  # one model never takes back what it said

_SETTLE_PATIENCE = 0.05  # seconds for the end of the body after [DONE]


class StreamingChat(ChatOpenAI):
    """One model with its parameters on one endpoint. Cheap: the HTTP client is the endpoint's."""

    endpoint: Endpoint = Field(exclude=True, repr=False)
    retries: Retries = Field(exclude=True, repr=False)
    terms: Terms = Field(exclude=True, repr=False)
    idle_timeout: float | None = Field(default=None, exclude=True)

    @classmethod
    def on(
        cls,
        endpoint: Endpoint,
        model: str,
        *,
        temperature: float | None = None,
        top_p: float | None = None,
        max_tokens: int | None = None,
        reasoning_effort: str | None = None,
        seed: int | None = None,
        idle_timeout: float | None = None,
        retries: Retries | None = None,
    ) -> Self:
        """A chat with `model` on `endpoint`; parameters that are None are left to the endpoint."""
        unused = object()  # in place of the HTTP clients that ChatOpenAI would build in 100 ms
        return cls(
            endpoint=endpoint,
            retries=retries or Retries(),
            terms=Terms(),
            idle_timeout=idle_timeout,
            model=model,
            temperature=temperature,
            top_p=top_p,
            max_completion_tokens=max_tokens,
            reasoning_effort=reasoning_effort,
            seed=seed,
            base_url=endpoint.base_url,
            api_key=SecretStr("kept by the endpoint"),
            stream_usage=True,
            use_responses_api=False,
            client=unused,
            async_client=unused,
            root_client=unused,
            root_async_client=unused,
        )

    def stream_turn(
        self,
        messages: Sequence[BaseMessage],
        *,
        tools: Sequence[dict[str, Any]] = (),
        response_format: ResponseFormat | None = None,
    ) -> AsyncGenerator[Piece, None]:
        """Asks the model and yields its answer as it comes; the last piece, and only it, is the `Turn`.

        Leaving the loop early or being cancelled closes the connection, at once if the generator is closed
        (`contextlib.aclosing`).

        Args:
            messages: the conversation.
            tools: definitions in OpenAI's format, `{"type": "function", "function": {…}}`.
            response_format: what an answer without tool calls must be; nobody here checks it.

        Raises:
            ModelError: after the last retry, or in the middle of an answer.
        """
        return self._pieces(messages, None, {"tools": list(tools)} if tools else {}, response_format)

    def request_body(self, messages: Sequence[BaseMessage], stop: list[str] | None, extra: dict[str, Any]) -> bytes:
        """The JSON of a streamed chat completion request; `extra` holds further fields of it."""
        payload = self._get_request_payload(
            list(messages), stop=stop, **extra, stream=True, stream_options={"include_usage": True}
        )
        self.terms.apply(payload)
        try:
            return orjson.dumps(payload)
        except orjson.JSONEncodeError:  # lone surrogates or huge integers
            return json.dumps(payload).encode()

    async def _pieces(
        self,
        messages: Sequence[BaseMessage],
        stop: list[str] | None,
        extra: dict[str, Any],
        response_format: ResponseFormat | None = None,
    ) -> AsyncGenerator[_Piece, None]:
        in_words = response_format is not None and not self.terms.takes(response_format)
        body = self._body(messages, stop, extra, response_format, in_words)
        failures = 0
        while True:
            begun = False
            answer: Answer | None = None
            try:
                answer = await self.endpoint.ask(body, idle_timeout=self.idle_timeout)
                reading = Reading(answer, self.endpoint.diagnosis)
                while (deltas := await reading.more()) is not None:
                    for delta in deltas:
                        begun = True
                        yield delta
                if response_format is not None and in_words:
                    self.terms.not_taken(response_format)
                yield reading.turn(self.model_name)
                await answer.settle(_SETTLE_PATIENCE)
                return
            except ModelRefused as error:
                if begun:
                    raise
                if not self.terms.concede(error):
                    if response_format is None or in_words or not self.terms.may_be_the_format(error):
                        raise _seen(error, messages) from None
                    in_words = True
                body = self._body(messages, stop, extra, response_format, in_words)
                pause = 0.0
            except ModelError as error:
                failures += 1
                after = None if begun else self.retries.pause(failures, error)
                if after is None:
                    raise
                pause = after
            finally:
                if answer is not None:
                    answer.close()
            await asyncio.sleep(pause)

    def _body(
        self,
        messages: Sequence[BaseMessage],
        stop: list[str] | None,
        extra: dict[str, Any],
        response_format: ResponseFormat | None,
        in_words: bool,
    ) -> bytes:
        if response_format is None:
            return self.request_body(messages, stop, extra)
        if in_words:
            return self.request_body(response_format.instruct(messages), stop, extra)
        return self.request_body(messages, stop, {**extra, "response_format": response_format.field()})

    # LangChain's way in

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async with aclosing(self._pieces(messages, stop, _request_fields(kwargs))) as pieces:
            async for piece in pieces:
                chunk = _generation_chunk(piece)
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        async with aclosing(self._pieces(messages, stop, _request_fields(kwargs))) as pieces:
            async for piece in pieces:
                if isinstance(piece, Turn):
                    message = piece.message.model_copy(update={"usage_metadata": _usage(piece)})
                    return ChatResult(generations=[ChatGeneration(message=message)])
        raise AssertionError("the last piece of an answer is its turn")

    def _stream(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError("StreamingChat is asynchronous: use stream_turn, astream or ainvoke")

    def _generate(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError("StreamingChat is asynchronous: use stream_turn, astream or ainvoke")


def _seen(error: ModelRefused, messages: Sequence[BaseMessage]) -> ModelRefused:
    """What a refusal means where images were sent, which endpoints refuse in many ways."""
    if error.status in (401, 402, 403, 413) or not any(_has_image(message) for message in messages):
        return error
    hint = "Choose a model that takes images, or send the input as text only."
    if "image" not in error.about:
        return ModelRefused(
            error.message, status=error.status, about=error.about, suggestions=(hint, *error.suggestions)
        )
    return ImagesRefused(
        f"The model does not take the images of this conversation. {error.message}",
        status=error.status,
        about=error.about,
        suggestions=(hint,),
    )


def _has_image(message: BaseMessage) -> bool:
    content = message.content
    return isinstance(content, list) and any(
        isinstance(part, dict) and part.get("type") == "image_url" for part in content
    )


def _request_fields(arguments: dict[str, Any]) -> dict[str, Any]:
    ours = ("stream", "stream_usage", "stream_options")
    return {key: value for key, value in arguments.items() if key not in ours}


def _usage(turn: Turn) -> UsageMetadata:
    read, written = turn.usage.input_tokens, turn.usage.output_tokens
    return UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)


def _generation_chunk(piece: _Piece) -> ChatGenerationChunk:
    if isinstance(piece, TextDelta):
        return ChatGenerationChunk(message=AIMessageChunk(content=piece.text))
    if isinstance(piece, ReasoningDelta):
        return ChatGenerationChunk(
            message=AIMessageChunk(content="", additional_kwargs={"reasoning_content": piece.text})
        )
    message = piece.message
    written = [(call["name"], json.dumps(call["args"]), call["id"]) for call in message.tool_calls]
    written += [(call["name"] or "", call["args"] or "", call["id"]) for call in message.invalid_tool_calls]
    return ChatGenerationChunk(
        message=AIMessageChunk(
            content="",
            tool_call_chunks=[
                tool_call_chunk(name=name, args=arguments, id=id_, index=index)
                for index, (name, arguments, id_) in enumerate(written)
            ],
            usage_metadata=_usage(piece),
            response_metadata={"model_provider": "openai"},
        ),
        generation_info={
            "finish_reason": piece.finish_reason,
            "model_name": message.response_metadata["model_name"],
        },
    )
