"""A box for real CPython, for code that the tool `python` can't run: bubblewrap and a system call filter."""
