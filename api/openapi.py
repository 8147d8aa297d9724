"""The OpenAPI 3.1 document, made from the endpoints themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final

import orjson
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from api.endpoint import PATH_SHAPES, Endpoint
from api.intake import IDEMPOTENCY_KEY_PATTERN
from api.problems import ProblemView
from kernel.events import STREAM_TYPES

_REF: Final = "#/components/schemas/{model}"
_NO_NUL: Final = r"^[^\u0000]*$"

_TAGS: Final = (
    ("runs", "One execution of an agent on a session's input."),
    ("sessions", "Conversations. Each owns one ordered event log."),
    ("files", "What lies in the workspace of a session."),
    ("documents", "The knowledge base: what is uploaded for agents to know."),
    ("agents", "Versioned configurations. A run keeps the version it started with."),
    ("health", "Whether it works, and how well."),
)
_HEADERS: Final = {
    "Location": {"description": "Path of what was made.", "schema": {"type": "string"}},
    "Idempotency-Replayed": {
        "description": "`true` where the answer is that of an earlier request with the same key.",
        "schema": {"type": "string", "const": "true"},
    },
    "Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}},
    "Allow": {"description": "Methods that the path takes.", "schema": {"type": "string"}},
    "WWW-Authenticate": {"description": "`Bearer`", "schema": {"type": "string"}},
}
_BYTES: Final = {"schema": {"type": "string", "format": "binary"}}
_TEXT: Final = {"type": "string"}
_PLAIN: Final = {
    "application/json": {"type": "object"},
    "text/event-stream": {"$ref": "#/components/schemas/Event"},
    "*/*": {},
}
_EVENT: Final = {
    "type": "object",
    "description": "One event of a stream.",
    "properties": {
        "id": {"type": "string", "description": "its seq", "pattern": "^[0-9]+$"},
        "event": {"type": "string", "enum": list(STREAM_TYPES)},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "description": "an object with seq, session_id, run_id (null in the `reset` of a session's stream), at and "
            "the fields of the event's type",
        },
    },
}
_PARAMETERS: Final = {
    "Idempotency-Key": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "A request that is sent again under its key gets the first answer again and does nothing. "
        "Keys are kept for a day.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": IDEMPOTENCY_KEY_PATTERN},
    },
    "If-Match": {
        "name": "If-Match",
        "in": "header",
        "description": "The ETag of the version that is meant; 412 if there is another one by now.",
        "schema": {"type": "string"},
    },
    "If-None-Match": {
        "name": "If-None-Match",
        "in": "header",
        "description": "The ETag of a copy; or `*`: only if there is nothing yet.",
        "schema": {"type": "string"},
    },
    "Range": {
        "name": "Range",
        "in": "header",
        "description": "One range of bytes, such as `bytes=0-1023`.",
        "schema": {"type": "string"},
    },
    "Last-Event-ID": {
        "name": "Last-Event-ID",
        "in": "header",
        "description": "The last seq that is known already; a browser that reconnects sends it by itself.",
        "schema": {"type": "string", "pattern": "^[0-9]{1,18}$"},
    },
}


def build_document(endpoints: Iterable[Endpoint[Any, Any]], *, version: str) -> bytes:
    """The document as JSON."""
    table = list(endpoints)
    schemas = _schemas(table)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in table:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, schemas)
    return orjson.dumps(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Longhaul",
                "version": version,
                "description": "Runs long agent jobs for web applications: durable runs, one event log per session, "
                "streams that resume. Errors are problem details (RFC 9457); lists are paged by cursor.",
            },
            "tags": [{"name": name, "description": text} for name, text in _TAGS],
            "paths": paths,
            "components": {
                "schemas": {**schemas.definitions, "Event": _EVENT},
                "headers": _HEADERS,
                "parameters": _PARAMETERS,
                "securitySchemes": {
                    "bearer": {
                        "type": "http",
                        "scheme": "bearer",
                        "description": "An API key, or a JWT of the operator's identity provider.",
                    },
                    "streamToken": {
                        "type": "apiKey",
                        "in": "query",
                        "name": "token",
                        "description": "A stream token.",
                    },
                },
            },
        }
    )


class _Schemas:
    """The schemas of all models, and how to refer to each."""

    def __init__(self, refs: Mapping[tuple[Any, JsonSchemaMode], dict[str, Any]], definitions: dict[str, Any]) -> None:
        self._refs = refs
        self.definitions = definitions

    def incoming(self, model: type[BaseModel]) -> dict[str, Any]:
        return self._refs[model, "validation"]

    def outgoing(self, model: type[BaseModel]) -> dict[str, Any]:
        return self._refs[model, "serialization"]


def _schemas(table: list[Endpoint[Any, Any]]) -> _Schemas:
    incoming = {model for endpoint in table for model in (endpoint.body, endpoint.query) if model is not None}
    outgoing: set[type[BaseModel]] = {ProblemView}
    for endpoint in table:
        outgoing.update(model for model in (endpoint.response, *(endpoint.also or {}).values()) if model is not None)
    wanted: list[tuple[type[BaseModel], JsonSchemaMode]] = [
        *((model, "validation") for model in sorted(incoming, key=lambda model: model.__name__)),
        *((model, "serialization") for model in sorted(outgoing, key=lambda model: model.__name__)),
    ]
    refs, top = models_json_schema(wanted, ref_template=_REF)
    definitions = top.get("$defs", {})
    _tidy(definitions)
    return _Schemas(refs, definitions)


def _tidy(schema: Any) -> None:
    """Drops the titles that pydantic makes of names, and says of every text what the edge sees to: it has no NUL."""
    if isinstance(schema, list):
        for item in schema:
            _tidy(item)
    if not isinstance(schema, dict):
        return
    if isinstance(schema.get("title"), str):
        del schema["title"]
    if schema.get("type") == "string" and not schema.keys() & {"pattern", "enum", "const", "format"}:
        schema["pattern"] = _NO_NUL
    for item in schema.values():
        _tidy(item)


def _operation(endpoint: Endpoint[Any, Any], schemas: _Schemas) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": _operation_id(endpoint),
        "tags": [endpoint.tag],
        "summary": endpoint.summary,
        "parameters": _parameters(endpoint, schemas),
        "responses": _responses(endpoint, schemas),
    }
    if endpoint.description:
        operation["description"] = endpoint.description
    if endpoint.body is not None:
        operation["requestBody"] = {
            "required": endpoint.body_required,
            "content": {"application/json": {"schema": schemas.incoming(endpoint.body)}},
        }
    if endpoint.raw:
        parsed = operation.get("requestBody", {}).get("content", {})
        operation["requestBody"] = {"required": True, "content": {**parsed, "application/octet-stream": _BYTES}}
    if endpoint.scope is not None:
        bearer = {"bearer": [endpoint.scope]}
        operation["security"] = [bearer] if endpoint.own_auth is None else [bearer, {"streamToken": []}]
    return operation


def _operation_id(endpoint: Endpoint[Any, Any]) -> str:
    words = [word for word in endpoint.path.strip("/").split("/") if word != "v1"]
    return "_".join([endpoint.method.lower(), *(word.strip("{}").replace("-", "_") for word in words if word)])


def _parameters(endpoint: Endpoint[Any, Any], schemas: _Schemas) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "pattern": f"^{PATH_SHAPES[name]}$"},
        }
        for name in endpoint.path_names
    ]
    query = schemas.definitions[schemas.incoming(endpoint.query)["$ref"].rsplit("/", 1)[1]]
    for name, schema in query.get("properties", {}).items():
        if name == "token" and endpoint.own_auth is not None:
            continue  # it is a security scheme
        parameter = {"name": name, "in": "query", "schema": _without_null(schema)}
        if "description" in schema:
            parameter["description"] = parameter["schema"].pop("description")
        parameters.append(parameter)
    if endpoint.idempotent:
        parameters.append({"$ref": "#/components/parameters/Idempotency-Key"})
    parameters += [{"$ref": f"#/components/parameters/{name}"} for name in endpoint.request_headers]
    if endpoint.media_type == "text/event-stream":
        parameters.append({"$ref": "#/components/parameters/Last-Event-ID"})
    return parameters


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter is left out rather than null."""
    schema = dict(schema)
    branches = [branch for branch in schema.pop("anyOf", []) if branch != {"type": "null"}]
    if schema.get("default", 0) is None:
        del schema["default"]
    return {**schema, **(branches[0] if len(branches) == 1 else {"anyOf": branches} if branches else {})}


def _responses(endpoint: Endpoint[Any, Any], schemas: _Schemas) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, model in {endpoint.status: endpoint.response, **(endpoint.also or {})}.items():
        response: dict[str, Any] = {"description": HTTPStatus(status).phrase}
        if model is not None:
            response["content"] = {"application/json": {"schema": schemas.outgoing(model)}}
        elif status not in (204, 304):
            response["content"] = {endpoint.media_type: {"schema": _PLAIN.get(endpoint.media_type, _TEXT)}}
        if status == endpoint.status:
            names = (["Location"] if endpoint.location else []) + (
                ["Idempotency-Replayed"] if endpoint.idempotent else []
            )
            if names:
                response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
        responses[str(status)] = response
    if endpoint.stream and endpoint.response is not None:
        responses["200"] = {
            "description": "The run's event stream, where the request accepts it.",
            "content": {"text/event-stream": {"schema": _PLAIN["text/event-stream"]}},
        }
    problem = {"application/problem+json": {"schema": schemas.outgoing(ProblemView)}}
    for status in _problem_statuses(endpoint):
        response = {"description": HTTPStatus(status).phrase, "content": problem}
        header = {401: "WWW-Authenticate", 503: "Retry-After"}.get(status)
        if header is not None:
            response["headers"] = {header: {"$ref": f"#/components/headers/{header}"}}
        responses.setdefault(str(status), response)
    return dict(sorted(responses.items()))


def _problem_statuses(endpoint: Endpoint[Any, Any]) -> set[int]:
    statuses = {422, 500, *endpoint.problems}
    if endpoint.scope is not None:
        statuses |= {401, 403, 503}
    if endpoint.path_names:
        statuses.add(404)
    if endpoint.body is not None:
        statuses |= {400, 408, 413, 415}
    if endpoint.raw:
        statuses |= {400, 408, 413}
    if endpoint.idempotent:
        statuses.add(409)
    return statuses
