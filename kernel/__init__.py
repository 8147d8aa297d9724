"""What a run is and how it survives.

The records (orgs, agents, sessions, runs, steps, messages), the event journal, leases, the queue's bell and
the fan-out of events. Postgres is the truth; Redis only carries the bell and live events, and may vanish.

Nothing in here knows HTTP or the graph: `api` and `worker` both stand on this package.
"""
