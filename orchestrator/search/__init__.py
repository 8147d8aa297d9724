"""Web search: one port, and an adapter for each engine."""
