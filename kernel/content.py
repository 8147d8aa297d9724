"""What a message holds: a text, or parts of text and images in order.

A part is `{"type": "text", "text": …}` or `{"type": "image", "url": …}`, whose URL is an https address or the image
itself (`data:`). So messages are taken in, kept and shown; what a model is sent of them is the orchestrator's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Part: TypeAlias = Mapping[str, Any]
Content: TypeAlias = "str | Sequence[Part]"


def text_of(content: Any) -> str:
    """The text of a message's content, without its images."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = (part.get("text") for part in content if isinstance(part, Mapping))
        return "\n".join(text for text in texts if isinstance(text, str))
    return str(content)
