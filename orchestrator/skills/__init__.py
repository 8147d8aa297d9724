"""Skills: named bundles of instructions and tools that agents are given as a whole."""
