"""The rehearsal model: a small OpenAI-compatible server that stands in where no real model is configured.

The server (server.py) speaks HTTP and the chat completions protocol and thinks nothing; a brain says what to
answer, as a script (script.py) of tokens, tool calls, delays and faults. The brain of the demo is brain.py;
tests and the bench bring their own. `python -m cli.rehearsal` serves the demo's brain.
"""

from cli.rehearsal.brain import RehearsalBrain
from cli.rehearsal.script import (
    Brain,
    BreakOff,
    ChatRequest,
    Fault,
    Hang,
    HangUp,
    HttpError,
    NotHttp,
    Raw,
    Reply,
    ToolCall,
)
from cli.rehearsal.server import ModelServer

__all__ = [
    "Brain",
    "BreakOff",
    "ChatRequest",
    "Fault",
    "Hang",
    "HangUp",
    "HttpError",
    "ModelServer",
    "NotHttp",
    "Raw",
    "RehearsalBrain",
    "Reply",
    "ToolCall",
]
