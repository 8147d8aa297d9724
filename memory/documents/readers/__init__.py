"""Readers: bytes of one format to blocks. They run in a child process, each imported when it is needed."""
