"""The HTTP edge: validates, writes, rings, streams. Knows no graph.

A request passes `access` (id, log, metrics), `router` (path, method, errors into problems) and `endpoint` (credential,
body, idempotency key) on its way to one of the nouns: `runs`, `events`, `sessions`, `agents`, `health`. Each noun
declares its endpoints, and `openapi` makes the document from the same declarations.
"""
