"""The error tree of memory."""

from __future__ import annotations

from kernel.errors import OperatorError, StoreUnavailable


class MemoryUnavailable(StoreUnavailable):
    """Memories can't be read or written at the moment. A run goes on without them; trying again is safe."""

    code = "memory_unavailable"


class EmbedderUnavailable(OperatorError):
    """The embedding endpoint gave no usable answer: down, refusing, too slow, or not what it claims to be."""

    code = "embedder_unavailable"
