"""``morpheo user`` and ``morpheo token``: who may call the services, and as what."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from rich.table import Table

from morpheo.access import ALL_SCOPES, Role, Scope, Token
from morpheo.accounts import Accounts
from morpheo.cli.common import F, json_option, out, print_json, remark, shown, tell
from morpheo.config import Settings
from morpheo.storage.database import Database

_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1)}


class LifeType(click.ParamType[timedelta]):
    """How long a token lives, on the command line: a number with the unit h or d."""

    name = "12h|30d"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Return the time, or complain."""
        if isinstance(value, timedelta):
            return value
        match = re.fullmatch(r"(\d{1,4})([hd])", str(value))
        if match is None:
            self.fail(f"{value!r} is not a time such as 12h or 30d", param, ctx)
        return int(match[1]) * _UNITS[match[2]]


def _roles_option(*, required: bool, text: str) -> Callable[[F], F]:
    return click.option(
        "--role", "roles", multiple=True, required=required, type=click.Choice([role.value for role in Role]), help=text
    )


_stdin_option = click.option("--password-stdin", is_flag=True, help="Read the password from stdin, for scripts.")
_ROLES = "admin, custodian (keeps problems and data), submitter (keeps algos), worker or reader; repeat."


@contextlib.contextmanager
def _accounts() -> Iterator[Accounts]:
    with contextlib.closing(Database(Settings.from_env().database)) as database:
        yield Accounts(database)


def _read_password(*, from_stdin: bool) -> str:
    # Never an argument: every user of the machine can read those, and shells keep them.
    if from_stdin:
        return sys.stdin.readline().rstrip("\n")
    return str(click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))


@click.group()
def user() -> None:
    """Add users, change their roles, lock them out.

    Works on the database, with the environment of any service. docs/access.md says what each role may do. The user of
    MORPHEO_USER and MORPHEO_PASSWORD is an admin besides, and not listed.
    """


@user.command("add")
@click.argument("name")
@_roles_option(required=True, text=_ROLES)
@click.option("--no-password", is_flag=True, help="For somebody who gets tokens only.")
@_stdin_option
def add_user(name: str, roles: tuple[str, ...], no_password: bool, password_stdin: bool) -> None:
    """Add a user; asks for the password."""
    password = None if no_password else _read_password(from_stdin=password_stdin)
    with _accounts() as accounts:
        accounts.add(name, [Role(role) for role in roles], password)
    tell(f"user {shown(name)} added: {', '.join(sorted(roles))}")


@user.command("ls")
@json_option
def list_users(as_json: bool) -> None:
    """List users."""
    with _accounts() as accounts:
        users = accounts.users()
    rows = [
        {
            "name": item.name,
            "roles": sorted(item.roles),
            "password": item.password_hash is not None,
            "disabled": item.disabled,
            "created_at": item.created_at,
        }
        for item in users
    ]
    if as_json:
        print_json(rows)
        return
    table = Table("name", "roles", "password", "state", "since (UTC)")
    for item in users:
        state = "[red]disabled[/]" if item.disabled else "enabled"
        has_password = "yes" if item.password_hash else "tokens only"
        table.add_row(item.name, ", ".join(sorted(item.roles)), has_password, state, _shown_time(item.created_at))
    out.print(table)


@user.command("passwd")
@click.argument("name")
@click.option("--none", "no_password", is_flag=True, help="Take the password away; tokens stay.")
@_stdin_option
def change_password(name: str, no_password: bool, password_stdin: bool) -> None:
    """Give a user another password; it counts at once."""
    password = None if no_password else _read_password(from_stdin=password_stdin)
    with _accounts() as accounts:
        accounts.set_password(name, password)
    tell(f"user {shown(name)} has " + ("no password any more" if no_password else "a new password"))


@user.command("disable")
@click.argument("name")
@click.option("--undo", is_flag=True, help="Let the user in again.")
def disable_user(name: str, undo: bool) -> None:
    """Lock a user out, with all tokens, at once. What is theirs stays."""
    with _accounts() as accounts:
        accounts.set_disabled(name, disabled=not undo)
    tell(f"user {shown(name)} is " + ("enabled" if undo else "disabled"))


@user.command("roles")
@click.argument("name")
@_roles_option(required=True, text=_ROLES)
def change_roles(name: str, roles: tuple[str, ...]) -> None:
    """Give a user these roles in place of the ones there were; tokens have no others from then on."""
    with _accounts() as accounts:
        accounts.set_roles(name, [Role(role) for role in roles])
    tell(f"user {shown(name)} is {', '.join(sorted(roles))}")


@click.group()
def token() -> None:
    """Make and revoke API tokens.

    Works on the database, with the environment of any service. A token is sent as `Authorization: Bearer TOKEN`;
    commands take it from MORPHEO_TOKEN.
    """


@token.command("create")
@click.argument("user_name", metavar="USER")
@click.option("--name", default="", help="What it is for, in your words.")
@_roles_option(required=False, text="Those of the user's roles that it gives; all by default; repeat.")
@click.option("--read-only", is_flag=True, help="For requests that change nothing.")
@click.option("--expires", "life", type=LifeType(), default="90d", show_default=True, help="How long it can be used.")
@json_option
def create_token(
    user_name: str, name: str, roles: tuple[str, ...], read_only: bool, life: timedelta, as_json: bool
) -> None:
    """Make a token and print it, this once: only a digest is kept."""
    with _accounts() as accounts:
        made, secret = accounts.create_token(
            user_name,
            name=name,
            life=life,
            roles=[Role(role) for role in roles] or None,
            scopes=frozenset({Scope.READ}) if read_only else ALL_SCOPES,
        )
    if as_json:
        print_json({**_document(made), "token": secret})
        return
    remark(f"token {made.id} of {shown(user_name)}, until {_shown_time(made.expires_at)} UTC; it is not shown again:")
    click.echo(secret)


@token.command("ls")
@click.argument("user_name", metavar="[USER]", required=False)
@json_option
def list_tokens(user_name: str | None, as_json: bool) -> None:
    """List the tokens of a user, or all, without their secrets."""
    with _accounts() as accounts:
        tokens = accounts.tokens(user_name)
    if as_json:
        print_json([_document(item) for item in tokens])
        return
    table = Table("id", "user", "for", "roles", "scopes", "expires (UTC)", "last used (UTC)", "state")
    for item in tokens:
        words = (", ".join(sorted(item.roles)), ", ".join(sorted(item.scopes)))
        times = (_shown_time(item.expires_at), _shown_time(item.last_used_at))
        table.add_row(item.id, item.user, shown(item.name), *words, *times, _state(item))
    out.print(table)


@token.command("revoke")
@click.argument("token_id", metavar="ID")
def revoke_token(token_id: str) -> None:
    """End a token at once; ID as `morpheo token ls` shows it."""
    with _accounts() as accounts:
        revoked = accounts.revoke(token_id)
    tell(f"token {shown(token_id)} is revoked" + ("" if revoked else ", and was before"))


def _state(item: Token) -> str:
    if item.revoked_at is not None:
        return "revoked"
    return "expired" if item.expires_at <= datetime.now(UTC) else "valid"


def _document(item: Token) -> dict[str, object]:
    return {
        "id": item.id,
        "user": item.user,
        "name": item.name,
        "roles": sorted(item.roles),
        "scopes": sorted(item.scopes),
        "created_at": item.created_at,
        "expires_at": item.expires_at,
        "last_used_at": item.last_used_at,
        "state": _state(item),
    }


def _shown_time(at: datetime | None) -> str:
    return "-" if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M")
