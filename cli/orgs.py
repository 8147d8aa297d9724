"""`longhaul orgs`: shows what each org gets of the slots, and changes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cli.deployment import with_database
from cli.dev import DataDir
from cli.migrate import DatabaseUrl

if TYPE_CHECKING:
    from kernel.postgres import Pool
    from kernel.shares import Share

app = typer.Typer(no_args_is_help=True, help="Show and change what each org gets of the workers' slots.")


@app.command("list")
def list_(database_url: DatabaseUrl = None, data_dir: DataDir = None) -> None:
    """Show all orgs: their weights and caps, what runs and waits, and what they have used."""

    async def work(pool: Pool) -> list[Share]:
        from kernel.shares import list_shares

        return await list_shares(pool)

    for share in with_database(work, database_url, data_dir):
        _show(share)


@app.command("set")
def set_(
    name: Annotated[str, typer.Argument(help="The org's name.")],
    weight: Annotated[
        float | None, typer.Option(help="0.01 to 1000: orgs that compete for slots get them in proportion.")
    ] = None,
    max_running: Annotated[
        int | None, typer.Option(help="How many of its runs may run at once; 0 lets none start.")
    ] = None,
    no_cap: Annotated[bool, typer.Option("--no-cap", help="As many as there are slots.")] = False,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Change an org's weight or cap. What runs goes on in any case."""

    async def work(pool: Pool) -> Share:
        from kernel.shares import set_share

        return await set_share(pool, name, weight=weight, max_running=max_running, no_cap=no_cap)

    _show(with_database(work, database_url, data_dir))


def _show(share: Share) -> None:
    cap = "no cap" if share.max_running is None else f"at most {share.max_running}"
    typer.echo(
        f"{share.name}  weight {share.weight:g}  {cap}  running {share.running}  waiting {share.waiting}"
        f"  used {share.charged:,.0f} units"
    )
