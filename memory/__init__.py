"""What an agent recalls beyond its present session.

`Memory` (`port.py`) is what the rest of Longhaul sees: remember a text, recall what is relevant to a question.
`PostgresMemory` (`store.py`) keeps memories in one table and finds them by two arms in one statement: shared
terms (`terms.py`) and nearby vectors (`embedders/`), fused into one score.

What always holds: every statement filters by org; what was saved for a user is recalled for that user alone;
only vectors of the same model are compared; memory that can't be reached is `MemoryUnavailable`, which a caller
may live without.
"""
