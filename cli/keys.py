"""`longhaul keys`: makes, lists and revokes the API keys of an org."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cli.deployment import with_database
from cli.dev import DataDir
from cli.migrate import DatabaseUrl

if TYPE_CHECKING:
    from kernel.postgres import Pool
    from kernel.tenants import ApiKey, NewKey

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")

Org = Annotated[str, typer.Option(help="Name of the org; made by `create` if need be.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    org: Org = "default",
    user: Annotated[str | None, typer.Option(help="The one user that the key stands for.")] = None,
    scope: Annotated[list[str] | None, typer.Option(help="read, write or admin; may be repeated.")] = None,
    role: Annotated[list[str] | None, typer.Option(help="Of those who decide approvals; may be repeated.")] = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Make a key and print it. It is not shown again."""

    async def work(pool: Pool) -> NewKey:
        from kernel.tenants import create_key, ensure_org

        org_id = await ensure_org(pool, org)
        scopes = scope or ("read", "write")
        return await create_key(pool, org_id, name=name, user_id=user, scopes=scopes, roles=role or ())

    made = with_database(work, database_url, data_dir)
    typer.echo(made.secret.get_secret_value())
    typer.echo(f"{made.key.id}: keep it now, it is not shown again", err=True)


@app.command("list")
def list_(org: Org = "default", database_url: DatabaseUrl = None, data_dir: DataDir = None) -> None:
    """Show the keys of an org, without their secrets."""

    async def work(pool: Pool) -> list[ApiKey]:
        from kernel.tenants import list_keys

        return await list_keys(pool, await _org_id(pool, org))

    for key in with_database(work, database_url, data_dir):
        state = "revoked" if key.revoked_at else "live"
        user = f" user {key.user_id}" if key.user_id else ""
        roles = f" roles {','.join(key.roles)}" if key.roles else ""
        about = f"{','.join(key.scopes)}{user}{roles}"
        typer.echo(f"{key.id}  {state:7}  {key.created_at:%Y-%m-%d %H:%M}  {about}  {key.name}")


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, key_…")],
    org: Org = "default",
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """End a key."""

    async def work(pool: Pool) -> ApiKey:
        from kernel.tenants import revoke_key

        return await revoke_key(pool, await _org_id(pool, org), key_id)

    revoked = with_database(work, database_url, data_dir)
    typer.echo(f"revoked {revoked.id} ({revoked.name}); API processes may take it for ten seconds more")


async def _org_id(pool: Pool, name: str) -> str:
    from kernel.errors import NotFound
    from kernel.tenants import SQL

    found: str | None = await pool.fetchval(SQL.org_by_name, name)
    if found is None:
        raise NotFound(f"There is no org named {name}.", suggestions=("longhaul keys create makes one",))
    return found
