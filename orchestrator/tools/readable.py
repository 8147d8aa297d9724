"""HTML reduced to what a person would read: text with headings, lists, tables, and where links lead.

`readable` keeps all of a page; `article` what it is about, without navigation and the like.

A single pass that never looks twice at a character, because pages come from anyone: Python's own `html.parser`
takes half a minute for 75 KB of `<a <a <a …`. What is left open (a comment, a tag, a quote, a script) swallows the
rest of the page, as in a browser.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urljoin

_SILENT: Final = frozenset(("head", "iframe", "math", "script", "select", "style", "svg", "template", "textarea"))
# What is around the matter of a page. Not `form` and `header`: some pages are one form, and headlines stand in headers.
_AROUND: Final = frozenset(("aside", "button", "dialog", "footer", "nav", "noscript"))
_REGIONS: Final = ("main", "article")
_IN_HEAD: Final = frozenset(("base", "link", "meta", "script", "style", "template", "title"))
_DEEPEST: Final = 64
_DEEPEST_INDENT: Final = 8
_BREAKS: Final = frozenset(
    (
        *("address", "article", "aside", "blockquote", "br", "dd", "div", "dl", "dt", "fieldset", "figcaption"),
        *("caption", "figure", "footer", "form", "header", "hr", "main", "nav", "ol", "pre", "section", "table"),
        *("tr", "ul"),
    )
)
_HEADINGS: Final = {f"h{level}": "#" * level + " " for level in range(1, 7)}
_PARAGRAPHS: Final = frozenset(("p", *_HEADINGS))
_RAW: Final = {
    name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE)
    for name in ("iframe", "script", "style", "textarea", "title")
}
_TAG_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9:-]{0,63}")
_QUOTE_OR_END: Final = re.compile(r"""=\s{0,16}["']|>""")
_HREF: Final = re.compile(r"""(?:^|[\s"'/])href\s{0,16}=\s{0,16}(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""", re.I)
_SPACES: Final = re.compile(r"[^\S\n]+")
_EMPTY_HEADING: Final = re.compile(r"^#{1,6}$", re.MULTILINE)
# Stands for a space that is not to be stripped, at the beginning of a line of code or of a nested list.
_HELD: Final = "\x00"
_SHORT: Final = 200
_LONGEST_ATTRIBUTES: Final = 8_192
_LONGEST_LINK: Final = 500


def readable(source: str, base: str = "") -> str:
    """The readable text of an HTML page. Links become `[text](absolute URL)`; `base` is the page's own URL."""
    page = _Page(base, _SILENT)
    page.read(source)
    body = page.text()
    return f"# {page.title}\n\n{body}".strip() if page.title else body


@dataclass(frozen=True, slots=True)
class Article:
    """What a page is about: its title, empty if it has none, and its readable text."""

    title: str
    text: str


def article(source: str, base: str = "") -> Article:
    """The matter of an HTML page: its `main` or its articles where it says what they are, without what is around it.

    A page where that leaves next to nothing is given whole.
    """
    page = _Page(base, _SILENT | _AROUND)
    page.read(source)
    text = page.matter()
    if len(text) < _SHORT:
        whole = _Page(base, _SILENT)
        whole.read(source)
        if len(all_of_it := whole.text()) > 4 * len(text):
            text = all_of_it
    return Article(page.title, text)


class _Page:
    """The text so far, and what the reader is inside of. `silent` are the elements whose insides are left out."""

    def __init__(self, base: str, silent: frozenset[str]) -> None:
        self._base = base
        self._left_out = silent
        self._out: list[str] = []
        self._silent: list[str] = []
        self._title = ""
        self._link: tuple[int, str] | None = None
        self._pre = 0
        self._lists: list[int] = []  # the last number given, -1 for lists without numbers
        self._depths = dict.fromkeys(_REGIONS, 0)
        self._begun = dict.fromkeys(_REGIONS, 0)
        self._regions: dict[str, list[tuple[int, int]]] = {name: [] for name in _REGIONS}

    @property
    def title(self) -> str:
        """What the page calls itself, empty if nothing."""
        return _plain(self._title).strip()

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
        """All that was read."""
        self._end_link()
        return _laid_out("".join(self._out))

    def matter(self) -> str:
        """What stands in `main`, else in articles, the longest alone if it outweighs the others; else all."""
        for name in _REGIONS:
            while self._depths[name]:
                self._leave_region(name)
            parts = [_laid_out("".join(self._out[start:end])) for start, end in self._regions[name]]
            if not any(parts):
                continue
            longest = max(parts, key=len)
            found = longest if 2 * len(longest) >= sum(map(len, parts)) else "\n\n".join(filter(None, parts))
            whole = self.text()
            return whole if len(found) < _SHORT and len(whole) > 4 * len(found) else found
        return self.text()

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
        if tag in self._left_out:
            if len(self._silent) < _DEEPEST and not attributes.endswith("/>"):
                self._silent.append(tag)
        elif self._silent:
            return
        elif tag == "a":
            self._begin_link(attributes)
        elif tag == "li":
            self._out.append(self._item())
        elif tag in ("td", "th"):
            self._out.append(" | ")
        else:
            self._break(tag)
            self._enter(tag)

    def _enter(self, tag: str) -> None:
        if tag in _HEADINGS:
            self._out.append(_HEADINGS[tag])
        elif tag == "pre":
            self._pre += 1
        elif tag in ("ul", "ol") and len(self._lists) < _DEEPEST:
            self._lists.append(0 if tag == "ol" else -1)
        elif tag in _REGIONS:
            self._end_link()
            if not self._depths[tag]:
                self._begun[tag] = len(self._out)
            self._depths[tag] += 1

    def _item(self) -> str:
        indent = _HELD * (2 * min(max(len(self._lists) - 1, 0), _DEEPEST_INDENT))
        if not self._lists or self._lists[-1] < 0:
            return f"\n{indent}- "
        self._lists[-1] += 1
        return f"\n{indent}{self._lists[-1]}. "

    def _leave_region(self, tag: str) -> None:
        if self._depths[tag]:
            self._end_link()
            self._depths[tag] -= 1
            if not self._depths[tag]:
                self._regions[tag].append((self._begun[tag], len(self._out)))

    def _close(self, tag: str) -> None:
        if tag in self._left_out:
            if tag in self._silent:
                del self._silent[self._silent.index(tag) :]
        elif self._silent:
            return
        elif tag == "a":
            self._end_link()
        else:
            self._break(tag)
            if tag == "pre":
                self._pre = max(0, self._pre - 1)
            elif tag in ("ul", "ol") and self._lists:
                self._lists.pop()
            elif tag in _REGIONS:
                self._leave_region(tag)

    def _break(self, tag: str) -> None:
        if tag in _PARAGRAPHS:
            self._out.append("\n\n")
        elif tag in _BREAKS:
            self._out.append("\n")

    def _say(self, text: str) -> None:
        if text and not self._silent:
            plain = _entities(text.replace(_HELD, "\ufffd"))
            if self._pre:
                plain = plain.expandtabs(4).replace(" ", _HELD)
            else:
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
        label = _plain("".join(self._out[start:]).replace(_HELD, " ")).strip()
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


def _laid_out(text: str) -> str:
    lines = [line.strip().rstrip(_HELD) for line in text.split("\n")]
    body = _EMPTY_HEADING.sub("", "\n".join(lines))
    return re.sub(r"\n{3,}", "\n\n", body).strip().replace(_HELD, " ")


def _entities(text: str) -> str:
    if "&" not in text:
        return text
    try:
        return html.unescape(text)
    except ValueError:  # a character number of more digits than Python converts
        return text


def _plain(text: str) -> str:
    return " ".join(_entities(text).split())
