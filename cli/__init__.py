"""The `longhaul` command: what a person at a terminal, a Procfile or a fresh machine needs.

`dev` and `demo` run the whole stack (embedded Postgres and Redis, the API, workers and, where no model is
configured, the rehearsal model) as child processes of one supervisor. `run` follows a job in the terminal.
`api`, `worker` and `migrate` are the three lines of the Procfile.
"""
