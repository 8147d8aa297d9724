"""MCP servers as tools: their sessions, and what the model sees of them.

Everything that needs the mcp package is in `session`, `http`, `stdio` and `content`. These are imported on the first
use of a server, on a thread: importing them takes half a second.
"""
