"""What a message of the input may hold: a text, or parts of text and images in order.

An image is given as it is (`data:`) or by its https address. An address is handed to the model's provider and never
fetched by Longhaul; whoever serves the model decides what it may load. An image given as it is is looked at closely
enough to know that it is one.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Discriminator, Field, Tag

from api.values import Body

MAX_IMAGE_BYTES: Final = 5 * 1_048_576
_MOST_TEXT: Final = 200_000
_MOST_PARTS: Final = 64
_LONGEST_URL: Final = 8_192
_LONGEST_DATA: Final = 4 * -(-MAX_IMAGE_BYTES // 3) + 64

_DATA: Final = re.compile(r"data:image/(png|jpeg|gif|webp);base64,", re.ASCII)
_BEGINS: Final[Mapping[str, Callable[[bytes], bool]]] = {
    "png": lambda data: data.startswith(b"\x89PNG\r\n\x1a\n"),
    "jpeg": lambda data: data.startswith(b"\xff\xd8\xff"),
    "gif": lambda data: data.startswith((b"GIF87a", b"GIF89a")),
    "webp": lambda data: data[:4] == b"RIFF" and data[8:12] == b"WEBP",
}


def _image(url: str) -> str:
    if url.startswith("data:"):
        _check_data(url)
    elif not _is_address(url):
        raise ValueError("must be an https URL, or data:image/(png|jpeg|gif|webp);base64,…")
    return url


def _check_data(url: str) -> None:
    head = _DATA.match(url)
    if head is None:
        raise ValueError("a data URL must begin with data:image/(png|jpeg|gif|webp);base64,")
    if len(url) > _LONGEST_DATA:
        raise ValueError(f"the image must not be larger than {MAX_IMAGE_BYTES} bytes")
    try:
        data = binascii.a2b_base64(url[head.end() :].encode(), strict_mode=True)
    except ValueError as error:
        raise ValueError(f"the image is not valid base64: {str(error)[:100]}") from None
    if len(data) > MAX_IMAGE_BYTES:
        raise ValueError(f"the image must not be larger than {MAX_IMAGE_BYTES} bytes")
    if not _BEGINS[head[1]](data):
        raise ValueError(f"the data is no {head[1]} image")


def _is_address(url: str) -> bool:
    if len(url) > _LONGEST_URL or not url.isascii() or not url.isprintable() or " " in url:
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme == "https" and bool(parts.hostname) and parts.username is None and parts.port != 0
    except ValueError:
        return False


Text = Annotated[str, Field(min_length=1, max_length=_MOST_TEXT)]


class TextPart(Body):
    """Text within a message."""

    type: Literal["text"]
    text: Text


class ImagePart(Body):
    """An image within a message of the user."""

    type: Literal["image"]
    url: Annotated[
        str,
        AfterValidator(_image),
        Field(
            description="https, loaded by the model's provider and not by Longhaul; or "
            f"data:image/(png|jpeg|gif|webp);base64,… of at most {MAX_IMAGE_BYTES} bytes, where the size limit of "
            "requests allows as much"
        ),
    ]


def _kind(value: Any) -> str | None:
    """Which branch of a union is meant. The tags' brackets keep them out of the paths of errors."""
    if isinstance(value, str):
        return "<text>"
    return "<parts>" if isinstance(value, list) else None


def _part_kind(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"<{kind}>" if kind in ("text", "image") else None


Part = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[ImagePart, Tag("<image>")],
    Discriminator(
        _part_kind,
        custom_error_type="part_type",
        custom_error_message='must be {"type": "text", "text": …} or {"type": "image", "url": …}',
    ),
]
MessageContent = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[list[Part], Field(min_length=1, max_length=_MOST_PARTS), Tag("<parts>")],
    Discriminator(
        _kind,
        custom_error_type="content_type",
        custom_error_message="must be a text or a list of parts",
    ),
]
