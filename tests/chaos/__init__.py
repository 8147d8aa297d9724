"""Chaos: many runs at once on a stack of real processes, while seeded faults hit all of it, and a verdict at the end.

`python -m tests.chaos --minutes 30 --seed 1 --runs 200 --faults 1000`, or `make chaos`. The same seed draws the same
faults at the same times; what they meet depends on the machine.
"""
