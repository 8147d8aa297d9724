"""What the terminal shows of a run, and what is kept of it."""

from __future__ import annotations

import io
from typing import Any

import orjson
import pytest
from rich.console import Console

from cli.client import Event
from cli.errors import RunFailed
from cli.follow import Transcript


def _shown(*events: tuple[str, dict[str, Any]], as_json: bool = False) -> tuple[str, Transcript]:
    stream = io.StringIO()
    console = Console(file=stream, highlight=False, markup=False, emoji=False, soft_wrap=True, width=80)
    transcript = Transcript(console, as_json=as_json)
    for seq, (kind, fields) in enumerate(events, 1):
        transcript.show(Event(seq, kind, {"seq": seq, "run_id": "run_1", "session_id": "ses_1", **fields}))
    return stream.getvalue(), transcript


def test_chunks_run_on_in_one_line_and_the_whole_message_is_not_repeated() -> None:
    text, transcript = _shown(
        ("message_chunk", {"message_id": "msg_1", "text": "six times "}),
        ("message_chunk", {"message_id": "msg_1", "text": "seven"}),
        ("message", {"message_id": "msg_1", "role": "assistant", "content": "six times seven"}),
        ("done", {"status": "succeeded", "finish_reason": "stop", "usage": {}}),
    )
    assert text.count("six times seven") == 1
    assert transcript.outcome.answer == "six times seven"
    assert transcript.outcome.first_token is not None
    transcript.outcome.raise_for_status()


def test_a_message_without_chunks_is_shown() -> None:
    text, _ = _shown(("message", {"message_id": "msg_1", "role": "assistant", "content": "whole"}))
    assert "whole" in text


def test_a_message_is_shown_whole_where_some_of_its_chunks_did_not_come() -> None:
    text, _ = _shown(
        ("message_chunk", {"message_id": "msg_1", "text": "six times "}),
        ("message", {"message_id": "msg_1", "role": "assistant", "content": "six times seven"}),
    )
    assert "six times seven" in text.splitlines()[-1]


def test_a_run_whose_events_are_no_longer_kept_is_shown_by_what_it_came_to() -> None:
    run = {"status": "succeeded", "finish_reason": "stop", "finished_at": "2026-01-31T12:00:00Z", "answer": "42"}
    text, transcript = _shown(("reset", {"reason": "retention", "snapshot": {**run, "usage": {"cost": 0.0}}}))
    assert "no longer kept; the run succeeded: 42" in text
    assert (transcript.outcome.answer, transcript.outcome.usage) == ("42", {"cost": 0.0})
    transcript.outcome.raise_for_status()
    failed = {"status": "failed", "finished_at": "2026-01-31T12:00:00Z", "error": {"code": "x", "message": "no model"}}
    _, transcript = _shown(("reset", {"reason": "retention", "snapshot": failed}))
    with pytest.raises(RunFailed, match=r"The run failed \(x\): no model"):
        transcript.outcome.raise_for_status()


def test_a_session_whose_events_are_no_longer_kept_is_shown_by_how_much_was_said() -> None:
    snapshot = {"messages": [{}, {}], "truncated": True, "active_run": None}
    text, _ = _shown(("reset", {"reason": "retention", "snapshot": snapshot}))
    assert "no longer kept; 2 or more messages came before" in text


def test_a_failed_run_raises_with_the_message_and_what_to_do() -> None:
    _, transcript = _shown(
        ("error", {"code": "model_down", "message": "no model", "suggestions": ["start it"]}),
        ("done", {"status": "failed", "finish_reason": "error", "usage": {}}),
    )
    with pytest.raises(RunFailed, match=r"The run failed \(model_down\): no model") as caught:
        transcript.outcome.raise_for_status()
    assert caught.value.suggestions == ("start it",)


def test_what_a_model_or_a_tool_writes_cannot_steer_the_terminal() -> None:
    text, _ = _shown(
        ("message_chunk", {"message_id": "msg_1", "text": "\x1b[2Jgone\x07"}),
        ("tool_result", {"name": "python", "status": "ok", "result": "\x1b]0;title\x07", "duration_ms": 3}),
        ("error", {"code": "x", "message": "\x9b31m"}),
        ("memory_recalled", {"items": [{"text": "\x1b[1m[bold]fact[/bold]"}]}),
        ("unheard_of", {"note": "\x1b[1m"}),
    )
    assert not {"\x1b", "\x07", "\x9b"} & set(text)
    assert "[bold]fact[/bold]" in text


def test_long_results_are_cut_and_say_how_long_they_were() -> None:
    text, _ = _shown(("tool_result", {"status": "ok", "result": "x" * 5000, "duration_ms": 3}))
    assert "(5000 characters)" in text
    assert len(text) < 600


def test_json_output_is_one_object_a_line() -> None:
    text, _ = _shown(("run_queued", {}), ("done", {"status": "succeeded"}), as_json=True)
    assert [orjson.loads(line)["event"] for line in text.splitlines()] == ["run_queued", "done"]


def test_events_of_a_sub_agent_are_indented_and_are_not_the_answer() -> None:
    text, transcript = _shown(
        ("state_entered", {"state": "THINK", "path": ""}),
        ("state_entered", {"state": "THINK", "path": "checker:call_1"}),
        ("message", {"message_id": "m", "role": "assistant", "content": "inner", "path": "checker:call_1"}),
    )
    first, second, _ = text.splitlines()
    assert second.index("state") == first.index("state") + 2
    assert transcript.outcome.answer == ""
