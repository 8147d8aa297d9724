"""One run, from its claim to its last event: the graph, its states, models and tools.

`engine` executes a claimed run; `graph` says which state follows which; each state is a module in `states`.
Nothing here knows HTTP, claims runs or decides which run comes next: that is the worker's.
"""
