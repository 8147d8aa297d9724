"""The process that executes runs: claims them, keeps their leases, drains, and tidies up.

`executor` owns the slots; `doorbell` wakes it; `heartbeat` keeps its leases from a thread of its own; `chores` are
arq's scheduled jobs. None of them decides what is true: Postgres does.
"""
