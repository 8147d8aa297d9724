"""The bench: measures the whole on this machine, each figure beside its floor from the same run.

`python -m bench` starts a stack of its own in a temporary directory, with processes as in production (Postgres,
Redis, one API, one worker) and a scripted OpenAI-compatible server, puts load on it over HTTP, and prints a table.
Figures are no test: a figure that misses its bound says so and fails nothing. Everything stays on loopback.

`rows/` has a module for each group of figures; the rest is what they measure with.
"""
