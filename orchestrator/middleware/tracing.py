"""`tracing`: OpenTelemetry spans of runs, model calls and tool calls. A session is one trace: its id is the trace id.

Only the API of OpenTelemetry is used. Where the spans go is for the process to say, by an SDK that is set up for it
(for instance by `opentelemetry-instrument`, or by a plug-in); without one they cost next to nothing and go nowhere.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from kernel.errors import BadSettings
from orchestrator.host import PluginHost
from orchestrator.middleware.calls import ModelCall, RunCall, RunOutcome, ToolCall
from orchestrator.middleware.middleware import Middleware, ModelNext, RunNext, ToolNext
from orchestrator.models.turn import Turn
from orchestrator.tools.toolbox import ToolOutcome

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

_SPAN_BITS: Final = 64


class Tracing(Middleware):
    """Spans are named `run <agent>`, `chat <model>` and `execute_tool <tool>`, with the attributes that OpenTelemetry
    has names for. They hold ids, names, counts and outcomes, and nothing that was said."""

    def __init__(self, host: PluginHost) -> None:
        del host
        try:
            from opentelemetry import trace
        except ImportError:
            raise BadSettings(
                "The middleware 'tracing' needs OpenTelemetry, which is not installed.",
                suggestions=("pip install 'longhaul[tracing]'", "or take it out of LONGHAUL_MIDDLEWARE"),
            ) from None
        self._trace = trace

    async def around_run(self, call: RunCall, call_next: RunNext) -> RunOutcome:
        about = {
            "longhaul.run_id": call.run_id,
            "longhaul.org_id": call.org_id,
            "longhaul.workflow": call.workflow,
            "longhaul.attempt": call.attempt,
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.id": call.agent_id,
            "gen_ai.agent.name": call.agent,
            "gen_ai.conversation.id": call.session_id,
        }
        with self._span(f"run {call.agent}", about, parent=self._session(call)) as span:
            outcome = await call_next(call)
            span.set_attribute("longhaul.status", outcome.status)
            span.set_attribute("longhaul.finish_reason", outcome.finish_reason)
            if outcome.status != "succeeded":
                span.set_status(self._trace.StatusCode.ERROR, outcome.finish_reason)
        return outcome

    async def around_model(self, call: ModelCall, call_next: ModelNext) -> Turn:
        about = {"gen_ai.operation.name": "chat", "gen_ai.request.model": call.model, "longhaul.path": call.path}
        with self._span(f"chat {call.model}", about) as span:
            turn = await call_next(call)
            span.set_attribute("gen_ai.usage.input_tokens", turn.usage.input_tokens)
            span.set_attribute("gen_ai.usage.output_tokens", turn.usage.output_tokens)
            span.set_attribute("gen_ai.response.finish_reasons", [turn.finish_reason])
        return turn

    async def around_tool(self, call: ToolCall, call_next: ToolNext) -> ToolOutcome:
        about = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": call.name,
            "gen_ai.tool.call.id": call.context.call_id,
            "longhaul.path": call.path,
            "longhaul.effect": call.effect,
        }
        with self._span(f"execute_tool {call.name}", about) as span:
            outcome = await call_next(call)
            span.set_attribute("longhaul.status", outcome.status)
            if outcome.status in ("error", "unknown"):
                span.set_status(self._trace.StatusCode.ERROR, outcome.status)
        return outcome

    @contextmanager
    def _span(self, name: str, about: Mapping[str, Any], *, parent: Context | None = None) -> Generator[Span]:
        """The present span for the time of the block. An exception is named by its type: its text may quote content."""
        tracer = self._trace.get_tracer("longhaul")
        with tracer.start_as_current_span(
            name, context=parent, attributes=about, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield span
            except BaseException as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(self._trace.StatusCode.ERROR)
                raise

    def _session(self, call: RunCall) -> Context:
        """The trace of the session, and in it a parent that stands for the session and the run."""
        trace_id = int(call.session_id.rpartition("_")[2], 16)
        span_id = int(call.run_id.rpartition("_")[2], 16) & ((1 << _SPAN_BITS) - 1)
        about = self._trace.SpanContext(
            trace_id, span_id or 1, is_remote=True, trace_flags=self._trace.TraceFlags(self._trace.TraceFlags.SAMPLED)
        )
        return self._trace.set_span_in_context(self._trace.NonRecordingSpan(about))
