"""Markdown (CommonMark and tables), by its tokens: what stands in a block is kept as it was written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from markdown_it import MarkdownIt
from markdown_it.token import Token

from memory.documents.blocks import Block, Parsed
from memory.documents.encodings import decoded


def read_markdown(data: bytes, charset: str | None) -> Parsed:
    """Raises DocumentRefused: not text."""
    text, encoding = decoded(data, charset)
    blocks = list(markdown_blocks(text))
    title = next((block.text for block in blocks if block.kind == "heading" and block.level == 1), None)
    return Parsed(blocks, {"encoding": encoding, **({"title": title[:300]} if title else {})})


def markdown_blocks(text: str) -> Iterator[Block]:
    """The blocks of the outermost level; quotes and lists are kept whole."""
    lines = text.split("\n")
    front = _front_matter(lines)
    if front:
        yield Block("text", "\n".join(lines[1 : front - 1]).strip())
        lines = [*[""] * front, *lines[front:]]
    tokens = MarkdownIt("commonmark").enable("table").parse("\n".join(lines))
    for place, token in enumerate(tokens):
        if token.level:
            continue
        match token.type:
            case "heading_open":
                yield Block("heading", tokens[place + 1].content.strip(), level=int(token.tag[1:]))
            case "paragraph_open":
                yield Block("text", tokens[place + 1].content.strip())
            case "fence" | "code_block":
                fence = token.markup or "```"
                code = token.content.rstrip("\n")
                yield Block("code", f"{fence}{token.info.strip()}\n{code}\n{fence}")
            case "bullet_list_open" | "ordered_list_open":
                yield Block("list", lines=_items(tokens, place, lines))
            case "table_open":
                rows = [line.strip() for line in _source(token, lines)]
                yield Block("table", header="\n".join(rows[:2]), lines=rows[2:])
            case "blockquote_open":
                yield Block("text", "\n".join(_source(token, lines)).strip())
            case "html_block":
                yield from _html(token.content)


def _source(token: Token, lines: Sequence[str]) -> list[str]:
    begin, end = token.map or [0, 0]
    return [line.rstrip() for line in lines[begin:end]]


def _items(tokens: Sequence[Token], opening: int, lines: Sequence[str]) -> list[str]:
    items = []
    for token in tokens[opening + 1 :]:
        if token.level == 0:
            break
        if token.type == "list_item_open" and token.level == 1:
            items.append("\n".join(line for line in _source(token, lines) if line).rstrip())
    return items


def _front_matter(lines: Sequence[str]) -> int:
    """How many lines it has, with its fences; 0 without one."""
    if not lines or lines[0].rstrip() != "---":
        return 0
    for place, line in enumerate(lines[1:200], start=1):
        if line.rstrip() in ("---", "..."):
            return place + 1
    return 0


def _html(source: str) -> Iterator[Block]:
    from memory.documents.readers.html import html_blocks

    if "<" in source:
        yield from html_blocks(source)[0]
