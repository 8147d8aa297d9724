"""A question that a model writes in SQL, before it goes to a database: one SELECT and nothing beside it.

This is a filter, not the wall: the wall is a role that may only read and a transaction that can't write. The filter
gives the model a better error than the database would, and keeps it from functions that reach out of the database.
"""

from __future__ import annotations

import logging
import re
from typing import Final

from orchestrator.tools.errors import ToolFailure

MAX_CHARACTERS: Final = 20_000

# Functions that read the server's files, run text as SQL, reach other servers, or disturb other sessions.
_NEVER: Final = re.compile(
    r"(pg_(read|write|stat)_(binary_)?file|pg_file_|pg_ls_|pg_current_logfile|pg_logdir|lo_|lowrite|loread|dblink"
    r"|pg_terminate_|pg_cancel_|pg_reload_|pg_rotate_|pg_promote|pg_switch_|pg_create_|pg_drop_|pg_replication_|pg_logical_"
    r"|pg_(try_)?advisory_|pg_sleep|pg_notify|set_config|setval|nextval|query_to_|table_to_|schema_to_|database_to_"
    r"|cursor_to_|xpath_table|currtid|pg_import_|pg_extension_config|pg_export_snapshot|pg_backup_|pg_start_|pg_stop_"
    r"|ts_stat|crosstab|connectby|http|plpython|copy_)",
    re.IGNORECASE,
)

# Text in which a name may be written with the numbers of its characters.
_ESCAPED: Final = re.compile(r"\bU&[\"']", re.IGNORECASE)


def checked(sql: str) -> str:
    """The question without a final semicolon. To be called on a thread: parsing may take a while.

    Raises:
        ToolFailure: for the model: what it may not ask, and what it may.
    """
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    logging.getLogger("sqlglot").disabled = True  # it would log what was asked
    if len(sql) > MAX_CHARACTERS:
        raise ToolFailure(f"The question is longer than {MAX_CHARACTERS} characters.", reached=False)
    try:
        found = [statement for statement in sqlglot.parse(sql, read="postgres") if statement is not None]
    except SqlglotError as error:
        raise ToolFailure(f"The SQL can't be read: {_first_line(error)}", reached=False) from None
    except RecursionError:
        raise ToolFailure("The SQL is nested too deep.", reached=False) from None
    if _ESCAPED.search(sql):
        raise ToolFailure("Names and texts with U& can't be used here.", reached=False)
    if len(found) != 1:
        raise ToolFailure("Ask one SELECT statement at a time.", reached=False)
    [statement] = found
    if not isinstance(statement, exp.Query):
        raise ToolFailure(f"Only SELECT can be asked, not {statement.key.upper()}.", reached=False)
    try:
        for node in statement.walk():
            if isinstance(node, exp.DML | exp.DDL | exp.Command | exp.Into | exp.Lock) and not isinstance(
                node, exp.Query
            ):
                raise ToolFailure(f"Only reading is possible: {node.key.upper()} is not.", reached=False)
            if isinstance(node, exp.Into | exp.Lock):
                raise ToolFailure("SELECT … INTO and SELECT … FOR UPDATE are not possible.", reached=False)
            if (name := _called(node)) and _NEVER.match(name):
                raise ToolFailure(f"The function {name[:64]!r} can't be used here.", reached=False)
    except RecursionError:
        raise ToolFailure("The SQL is nested too deep.", reached=False) from None
    return sql.strip().rstrip(";").rstrip()


def _called(node: object) -> str | None:
    """The name of the function that is called here, or may be: `(x).f` calls f, if x has no column f."""
    from sqlglot import exp

    if isinstance(node, exp.Anonymous):
        return node.name
    if isinstance(node, exp.Func):
        return node.sql_name()
    if isinstance(node, exp.Dot) and isinstance(node.this, exp.Paren | exp.Bracket):
        inside = node.this.this
        whole = isinstance(inside, exp.Column) and not inside.table and isinstance(node.this, exp.Paren)
        return None if whole else node.name
    return None


def _first_line(error: Exception) -> str:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    return plain.partition("\n")[0][:300]
