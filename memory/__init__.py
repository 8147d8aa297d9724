"""What an agent recalls beyond its present session.

`Memory` (`port.py`) is what the rest of Longhaul sees: remember, recall, change, forget. `PostgresMemory` (`store.py`)
keeps a memory in three tables: what it is, its words (`words.py`) and its vector (`spaces.py`, `embedders/`). It writes
in one transaction (`writing.py`), finds by words and nearness together (`recalling/`), and leaves to the background
what a writer need not wait for (`upkeep.py`, `filling.py`, `graph.py`).

What always holds: every statement filters by org; what was saved for a user, an agent or a session is recalled for
that one alone; only vectors of the same model are compared; what is counted is what is there; memory that can't be
reached is `MemoryUnavailable`, which a caller may live without.
"""
