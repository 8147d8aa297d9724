"""Models: chat models behind any OpenAI-compatible endpoint, read as lean streams, and those of plug-ins.

`Models` (factory.py) is what a worker holds; it gives a `ChatProvider` (provider.py) for a choice, which may be
several models in order (fallbacks.py) or a plug-in's (plugin.py, langchain.py). `StreamingChat.stream_turn` (chat.py)
is how a turn is taken. Below it: the endpoints that are in use (endpoints.py), one HTTP endpoint (endpoint.py) and what
it does not take (terms.py), its server-sent events (sse.py), the answer as it grows (turn.py), when to try again
(retries.py), and what a failure means for the people who must act (diagnosis.py).
"""

from orchestrator.models.chat import StreamingChat
from orchestrator.models.factory import Models
from orchestrator.models.provider import ChatProvider, ResponseFormat
from orchestrator.models.turn import Piece, ReasoningDelta, Restart, TextDelta, Turn, Usage

__all__ = [
    "ChatProvider",
    "Models",
    "Piece",
    "ReasoningDelta",
    "ResponseFormat",
    "Restart",
    "StreamingChat",
    "TextDelta",
    "Turn",
    "Usage",
]
