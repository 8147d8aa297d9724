"""MCP servers that tests talk to: processes of their own, made with the mcp package or by hand."""
