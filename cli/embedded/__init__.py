"""Postgres with pgvector and Redis from the package index, run as child processes on unix sockets.

For development, tests, the demo and the bench; production points `DATABASE_URL` and `REDIS_URL` elsewhere.
Postgres is durable as a real one is (fsync and synchronous commit on), so what is measured and tested against
it holds. Redis keeps nothing and evicts nothing: that it may vanish is part of the design.
"""

from cli.embedded.postgres import EmbeddedPostgres
from cli.embedded.redis import EmbeddedRedis
from cli.embedded.servers import EmbeddedServers

__all__ = ["EmbeddedPostgres", "EmbeddedRedis", "EmbeddedServers"]
