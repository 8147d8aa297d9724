"""The `longhaul` command. Every command is a module of its own, which imports what is heavy when it runs."""

from __future__ import annotations

import sys

import typer

from cli import demo, dev, doctor, keys, migrate, orgs, processes, run, workers
from kernel.errors import LonghaulError

app = typer.Typer(
    help="Runs long agent jobs for web applications.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(demo.demo)
app.command()(dev.dev)
app.command()(run.run)
app.command()(migrate.migrate)
app.command()(doctor.doctor)
app.add_typer(keys.app, name="keys")
app.add_typer(orgs.app, name="orgs")
app.command()(workers.workers)
app.command()(processes.api)
app.command()(processes.worker)


def main() -> None:
    """The entry point. Errors that are meant for a person are shown as such, with exit code 1."""
    try:
        app()
    except LonghaulError as error:
        from cli.console import complain

        complain(error)
        sys.exit(1)
