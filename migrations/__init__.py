"""Numbered SQL files and the runner that applies them, each once and in order."""
