"""Models: chat models behind any OpenAI-compatible endpoint, read as lean streams.

`Models` (factory.py) is what a worker holds; `StreamingChat.stream_turn` (chat.py) is how a turn is taken.
Below them: one HTTP endpoint (endpoint.py), its server-sent events (sse.py), the answer as it grows
(turn.py), when to try again (retries.py), and what a failure means for the people who must act
(diagnosis.py).
"""

from orchestrator.models.chat import StreamingChat
from orchestrator.models.factory import Models
from orchestrator.models.turn import ReasoningDelta, TextDelta, Turn, Usage

__all__ = ["Models", "ReasoningDelta", "StreamingChat", "TextDelta", "Turn", "Usage"]
