"""The working window of a session, and what of it a model is told within a budget of tokens.

`windows` loads a session's window from Redis or Postgres, `context` assembles what one agent is told at each step,
`compaction` summarises what falls out. A context is assembled from records alone: losing Redis changes no answer.
"""
