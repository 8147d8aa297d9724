"""Requests that are described once and filled in with the arguments of each call.

What always holds: an argument fills the place that it is named in and no more. In a URL it is percent-encoded, can't
leave its path segment and can't make it empty or a dot; in a header it is one line; in a JSON body it is a value or
part of a text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlencode

import orjson

from kernel.tool_definitions import PLACEHOLDER, HttpTool, named_in
from orchestrator.tools.results import as_text, clean
from orchestrator.tools.tool import BadArguments

_LARGEST_BODY: Final = 1_048_576  # bytes
_LONGEST_HEADER: Final = 4_096
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e\xa0-\xff]*")
_DOTS: Final = re.compile(r"(?:^|[/\\])\.{1,2}(?:[/\\]|$)")
_BODYLESS: Final = ("GET", "HEAD", "DELETE")
_FORM: Final = "application/x-www-form-urlencoded"
_LEFT_OUT: Final = object()


@dataclass(frozen=True, slots=True)
class FilledRequest:
    """A request as it is sent, but for what the tool adds of its own."""

    url: str
    headers: dict[str, str]
    content: bytes | None


class RequestTemplate:
    """The request of an HTTP tool."""

    def __init__(self, definition: HttpTool) -> None:
        execution = definition.execution_config
        properties: Mapping[str, Any] = definition.parameter_schema.get("properties") or {}
        self._parameters = frozenset(properties)
        self._defaults = {
            name: schema["default"]
            for name, schema in properties.items()
            if isinstance(schema, Mapping) and "default" in schema
        }
        self._in_query = execution.method in _BODYLESS
        address = execution.url.partition("#")[0]
        self._path, _, self._query = address.partition("?")
        self._headers = execution.headers
        self._body = execution.body
        types = [value for name, value in execution.headers.items() if name.lower() == "content-type"]
        self._type = types[0].partition(";")[0].strip().lower() if types else None
        self._named = named_in([execution.url, *execution.headers.values()])
        if execution.body is not None:
            self._named |= named_in(_texts(execution.body)) & self._parameters

    def fill(self, given: Mapping[str, Any]) -> FilledRequest:
        """The request of a call with these arguments.

        Raises:
            BadArguments: one of them can't stand where it would.
        """
        values = {**self._defaults, **given}
        values = {name: value for name, value in values.items() if name in given or name in self._named}
        rest = {name: value for name, value in given.items() if name not in self._named}
        content, content_type = self._content(values, rest)
        headers = dict(self._filled_headers(values))
        if content_type is not None and self._type is None:
            headers["Content-Type"] = content_type
        return FilledRequest(self._url(values, rest if self._in_query else {}), headers, content)

    def _url(self, values: Mapping[str, Any], rest: Mapping[str, Any]) -> str:
        url = "/".join(_segment(segment, values) for segment in self._path.split("/"))
        query = [part for part in (_query_part(part, values) for part in self._query.split("&")) if part]
        pairs = [(clean(name), text) for name, value in rest.items() for text in _query_texts(value)]
        if pairs:
            query.append(urlencode(pairs, quote_via=quote))
        return f"{url}?{'&'.join(query)}" if query else url

    def _filled_headers(self, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        for name, template in self._headers.items():
            alone = PLACEHOLDER.fullmatch(template)
            if alone and values.get(alone.group(1)) is None:
                continue
            text = _filled(template, values, _text)
            if not _HEADER_VALUE.fullmatch(text) or len(text) > _LONGEST_HEADER:
                who = ", ".join(sorted(named_in([template]))) or name
                raise BadArguments([f"{who}: goes into the header {name}, which is one line of Latin-1 characters"])
            yield name, text

    def _content(self, values: Mapping[str, Any], rest: Mapping[str, Any]) -> tuple[bytes | None, str | None]:
        """The body and its type."""
        if self._body is not None:
            body = _filled_json(self._body, values, self._parameters)
            if body is _LEFT_OUT:
                return None, None
        elif self._in_query or not (rest or self._parameters - self._named):
            return None, None
        else:
            body = dict(rest)
        content = self._encoded(body)
        if len(content) > _LARGEST_BODY:
            raise BadArguments([f"the request's body would be longer than {_LARGEST_BODY} bytes"])
        return content, "application/json"

    def _encoded(self, body: Any) -> bytes:
        if self._type == _FORM and isinstance(body, Mapping):
            pairs = [(clean(str(name)), text) for name, value in body.items() for text in _query_texts(value)]
            return urlencode(pairs).encode()
        if isinstance(body, str):
            # A text is sent as it is where a type says that it is not JSON.
            as_it_is = self._type is not None and not re.fullmatch(r"application/(.+\+)?json", self._type)
            return clean(body).encode() if as_it_is else orjson.dumps(clean(body))
        return as_text(body).encode()


def _texts(template: Any) -> Iterator[str]:
    if isinstance(template, str):
        yield template
    elif isinstance(template, Mapping):
        for item in template.values():
            yield from _texts(item)
    elif isinstance(template, list):
        for item in template:
            yield from _texts(item)


def _filled(template: str, values: Mapping[str, Any], text: Callable[[Any], str]) -> str:
    return PLACEHOLDER.sub(lambda found: text(values.get(found.group(1))), template)


def _segment(template: str, values: Mapping[str, Any]) -> str:
    """One segment of a path. Servers may decode `%2F` before they take a path apart, so dots between slashes are
    refused as well."""
    names = [found.group(1) for found in PLACEHOLDER.finditer(template)]
    for name in names:
        if values.get(name) is None:
            raise BadArguments([f"{name}: is needed for the address"])
        if _DOTS.search(_text(values[name])):
            raise BadArguments([f"{name}: must not be or hold a path of dots"])
    filled = _filled(template, values, lambda value: quote(_text(value), safe=""))
    if names and filled in ("", ".", ".."):
        raise BadArguments([f"{', '.join(names)}: must not be empty or dots, for it is a part of the address"])
    return filled


def _query_part(template: str, values: Mapping[str, Any]) -> str:
    """One `name=value`; empty if an argument that it needs was not given."""
    if any(values.get(found.group(1)) is None for found in PLACEHOLDER.finditer(template)):
        return ""
    return _filled(template, values, lambda value: quote(_text(value), safe=""))


def _query_texts(value: Any) -> Iterator[str]:
    """A list is sent as the same parameter several times."""
    for item in value if isinstance(value, list) else (value,):
        if item is not None:
            yield _text(item)


def _filled_json(template: Any, values: Mapping[str, Any], parameters: frozenset[str]) -> Any:
    """The template with its texts filled in. A text that is one placeholder becomes the argument's value; what such an
    argument was not given for is left out of its object or list."""
    if isinstance(template, str):
        alone = PLACEHOLDER.fullmatch(template)
        if alone and alone.group(1) in parameters:
            return values.get(alone.group(1), _LEFT_OUT)
        # What looks like a placeholder and names no parameter is text, such as a query language's braces.
        return PLACEHOLDER.sub(
            lambda found: _text(values.get(found.group(1))) if found.group(1) in parameters else found.group(), template
        )
    if isinstance(template, Mapping):
        items = ((name, _filled_json(item, values, parameters)) for name, item in template.items())
        return {name: item for name, item in items if item is not _LEFT_OUT}
    if isinstance(template, list):
        filled = (_filled_json(item, values, parameters) for item in template)
        return [item for item in filled if item is not _LEFT_OUT]
    return template


def _text(value: Any) -> str:
    """An argument within a text: a list of plain values by commas, what is nested as JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Sequence) and not any(isinstance(item, Mapping | list) for item in value):
        return ",".join(_text(item) for item in value)
    return as_text(value)
