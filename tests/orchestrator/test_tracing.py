"""Spans: a session is one trace, calls hang under their run, and nothing that was said is in them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from redis.asyncio import Redis

from kernel.ids import new_id
from kernel.postgres import Pool
from kernel.settings import Settings
from memory.in_memory import InMemory
from orchestrator.egress import EgressClient
from orchestrator.host import PluginHost
from orchestrator.measures import Measures
from orchestrator.middleware.builtin import built_in
from orchestrator.middleware.calls import ModelCall, RunCall, RunOutcome, ToolCall
from orchestrator.middleware.chain import Chain
from orchestrator.models.turn import Turn, Usage
from orchestrator.tools.tool import ToolContext
from orchestrator.tools.toolbox import ToolOutcome


@pytest.fixture(scope="module")
def exporter() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    yield exporter
    provider.shutdown()


async def test_the_session_is_the_trace_and_calls_hang_under_their_run(
    exporter: InMemorySpanExporter, settings: Settings, database: Pool, redis: Redis
) -> None:
    egress = EgressClient()
    chain = Chain(
        {"tracing": built_in("tracing", PluginHost(settings, database, redis, egress, Measures(), InMemory()))}
    )
    run = RunCall(new_id("run"), new_id("ses"), "org", None, "agt", 1, "guide", "agent_chat", 1, "sesame", (), {})

    async def ask(call: ModelCall) -> Turn:
        return Turn(AIMessage("sesame"), Usage(3, 4), "stop")

    async def make(call: ToolCall) -> ToolOutcome:
        return ToolOutcome("error", "sesame", 1)

    async def execute(call: RunCall) -> RunOutcome:
        await chain.around_model(ask)(ModelCall(call, "", "small", [HumanMessage("sesame")], (), lambda _: None))
        about = ToolContext("org", None, None, call.session_id, call.run_id, "call_1", "key")
        await chain.around_tool(make)(ToolCall(call, "", "send", "once", {"to": "sesame"}, about))
        raise ValueError("sesame")

    with pytest.raises(ValueError, match="sesame"):
        await chain.around_run(execute)(run)
    await egress.aclose()

    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"run guide", "chat small", "execute_tool send"}
    whole = spans["run guide"]
    assert f"{whole.context.trace_id:032x}" == run.session_id.removeprefix("ses_")
    for name in ("chat small", "execute_tool send"):
        parent = spans[name].parent
        assert parent is not None
        assert parent.span_id == whole.context.span_id
    assert (whole.attributes or {})["error.type"] == "ValueError"
    assert "sesame" not in "".join(span.to_json() for span in spans.values())
