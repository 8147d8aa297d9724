"""HTML reduced to what a person would read: text, line breaks, list marks, and where links lead.

A single pass that never looks twice at a character, because pages come from anyone: Python's own `html.parser`
takes half a minute for 75 KB of `<a <a <a …`. What is left open (a comment, a tag, a quote, a script) swallows the
rest of the page, as in a browser.
"""

from __future__ import annotations

import html
import re
from typing import Final
from urllib.parse import urljoin

_SILENT: Final = frozenset(("head", "iframe", "math", "script", "select", "style", "svg", "template", "textarea"))
_IN_HEAD: Final = frozenset(("base", "link", "meta", "script", "style", "template", "title"))
_DEEPEST_SILENCE: Final = 64
_BREAKS: Final = frozenset(
    (
        *("address", "article", "aside", "blockquote", "br", "dd", "div", "dl", "dt", "fieldset", "figcaption"),
        *("figure", "footer", "form", "header", "hr", "main", "nav", "ol", "pre", "section", "table", "tr", "ul"),
    )
)
_PARAGRAPHS: Final = frozenset(("p", "h1", "h2", "h3", "h4", "h5", "h6"))
_RAW: Final = {
    name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE)
    for name in ("iframe", "script", "style", "textarea", "title")
}
_TAG_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9:-]{0,63}")
_QUOTE_OR_END: Final = re.compile(r"""=\s{0,16}["']|>""")
_HREF: Final = re.compile(r"""(?:^|[\s"'/])href\s{0,16}=\s{0,16}(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""", re.I)
_SPACES: Final = re.compile(r"[^\S\n]+")
_LONGEST_ATTRIBUTES: Final = 8_192
_LONGEST_LINK: Final = 500


def readable(source: str, base: str = "") -> str:
    """The readable text of an HTML page. Links become `[text](absolute URL)`; `base` is the page's own URL."""
    page = _Page(base)
    page.read(source)
    return page.text()


class _Page:
    """The text so far, and what the reader is inside of."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._out: list[str] = []
        self._silent: list[str] = []
        self._title = ""
        self._link: tuple[int, str] | None = None
        self._pre = 0

    def read(self, source: str) -> None:
        position = 0
        while True:
            start = source.find("<", position)
            if start < 0:
                self._say(source[position:])
                return
            self._say(source[position:start])
            position = self._markup(source, start)
            if position < 0:
                return

    def text(self) -> str:
        self._end_link()
        lines = [line.strip() for line in "".join(self._out).split("\n")]
        body = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
        title = _plain(self._title).strip()
        return f"# {title}\n\n{body}".strip() if title else body

    def _markup(self, source: str, start: int) -> int:
        """What begins with `<` at `start`; returns where reading goes on, -1 for the end."""
        following = source[start + 1 : start + 2]
        if following == "!" or following == "?":
            comment = source.startswith("<!--", start)
            end = source.find("-->" if comment else ">", start + 2)
            return -1 if end < 0 else end + (3 if comment else 1)
        closing = following == "/"
        name = _TAG_NAME.match(source, start + 1 + closing)
        if name is None:
            if closing:
                end = source.find(">", start)
                return -1 if end < 0 else end + 1
            self._say("<")
            return start + 1
        end = _end_of_tag(source, name.end())
        if end < 0:
            return -1
        tag = name.group().lower()
        if closing:
            self._close(tag)
            return end
        self._open(tag, source[name.end() : min(end, name.end() + _LONGEST_ATTRIBUTES)])
        return self._raw(tag, source, end) if tag in _RAW else end

    def _raw(self, tag: str, source: str, start: int) -> int:
        """The inside of an element that holds no markup, up to its end tag."""
        end = _RAW[tag].search(source, start)
        if end is None:
            return -1
        if tag == "title" and not self._title and set(self._silent) <= {"head"}:
            self._title = source[start : end.start()][:300]
        return end.start()

    def _open(self, tag: str, attributes: str) -> None:
        if self._silent == ["head"] and tag not in _IN_HEAD:
            self._silent.clear()  # most heads have no end tag; the first element of the body ends them
        if tag in _SILENT:
            if len(self._silent) < _DEEPEST_SILENCE and not attributes.endswith("/>"):
                self._silent.append(tag)
        elif self._silent:
            return
        elif tag == "a":
            self._begin_link(attributes)
        elif tag == "li":
            self._out.append("\n- ")
        elif tag in ("td", "th"):
            self._out.append(" | ")
        else:
            self._break(tag)
            self._pre += tag == "pre"

    def _close(self, tag: str) -> None:
        if tag in _SILENT:
            if tag in self._silent:
                del self._silent[self._silent.index(tag) :]
        elif self._silent:
            return
        elif tag == "a":
            self._end_link()
        else:
            self._break(tag)
            self._pre = max(0, self._pre - (tag == "pre"))

    def _break(self, tag: str) -> None:
        if tag in _PARAGRAPHS:
            self._out.append("\n\n")
        elif tag in _BREAKS:
            self._out.append("\n")

    def _say(self, text: str) -> None:
        if text and not self._silent:
            plain = _entities(text)
            if not self._pre:
                plain = _SPACES.sub(" ", plain.replace("\n", " "))
                if self._out and self._out[-1].endswith((" ", "\n")):
                    plain = plain.lstrip(" ")
            self._out.append(plain)

    def _begin_link(self, attributes: str) -> None:
        self._end_link()
        found = _HREF.search(attributes)
        target = _entities(next((part for part in found.groups() if part), "") if found else "").strip()
        if not target or target.startswith("#") or len(target) > _LONGEST_LINK:
            return
        try:
            absolute = urljoin(self._base, target)
        except ValueError:
            return
        if absolute.startswith(("http://", "https://")):
            self._link = (len(self._out), absolute)

    def _end_link(self) -> None:
        if self._link is None:
            return
        start, target = self._link
        self._link = None
        label = _plain("".join(self._out[start:])).strip()
        if label:
            del self._out[start:]
            self._out.append(f"[{label}]({target})")


def _end_of_tag(source: str, position: int) -> int:
    """Just behind the `>` that ends the tag: not one within a quoted value. -1 if there is none."""
    while True:
        found = _QUOTE_OR_END.search(source, position)
        if found is None:
            return -1
        if found.group() == ">":
            return found.end()
        closing = source.find(found.group()[-1], found.end())
        if closing < 0:
            return -1
        position = closing + 1


def _entities(text: str) -> str:
    if "&" not in text:
        return text
    try:
        return html.unescape(text)
    except ValueError:  # a character number of more digits than Python converts
        return text


def _plain(text: str) -> str:
    return " ".join(_entities(text).split())
