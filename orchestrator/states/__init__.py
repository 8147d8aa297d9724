"""The four states of the graph, one module each. A state reads the graph's state, works through its context, and
returns what changed; which state follows is `orchestrator.graph`'s to say.
"""
