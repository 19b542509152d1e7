"""Accounts: what an administrator does about users and tokens."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from datetime import timedelta

from morpheo.access import (
    ALL_SCOPES,
    ORCHESTRATOR_OF_2017,
    Role,
    Scope,
    Token,
    User,
    is_name,
    new_secret,
    secret_digest,
)
from morpheo.errors import InvalidInput, SettingsError
from morpheo.logins import HASHER, MAX_PASSWORD
from morpheo.storage.database import Database

#: Fewest letters of a new password. NIST SP 800-63B asks for 8, and advises more where there is no second factor.
MIN_PASSWORD = 12
#: Longest life of a token.
MAX_TOKEN_LIFE = timedelta(days=366)


class Accounts:
    """
    Adds and changes users and tokens.

    Args:
        database: Keeps the rows.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def require_somebody(self, password: str) -> None:
        """
        Do nothing if somebody can log in.

        Args:
            password: Of the user of the settings; empty if there is none.

        Raises:
            SettingsError: nobody can.
            DatabaseUnavailable: that is not known.
        """
        if password or any(not user.disabled for user in self.users()):
            return
        raise SettingsError(
            "nobody could log in: add a user with `morpheo user add NAME --role admin`, or set MORPHEO_USER and "
            "MORPHEO_PASSWORD, the same for every service, for an admin who needs no row"
        )

    def add(self, name: str, roles: Iterable[Role], password: str | None) -> None:
        """
        Add a user.

        Args:
            name: Who.
            roles: What they are trusted with.
            password: None for somebody who gets tokens only.

        Raises:
            InvalidInput: the name or the password cannot be used.
            Conflict: there is a user of that name.
        """
        hashed = None if password is None else HASHER.hash(_checked_password(password))
        with self._database.begin() as work:
            work.accounts.add(_checked_name(name), roles, hashed)

    def users(self) -> list[User]:
        """Return all users by name, without the one of the settings."""
        with self._database.read() as work:
            return work.accounts.all()

    def set_password(self, name: str, password: str | None) -> None:
        """
        Give a user another password, or take it away.

        Raises:
            InvalidInput: it cannot be used.
            NotFound: there is no such user.
        """
        hashed = None if password is None else HASHER.hash(_checked_password(password))
        with self._database.begin() as work:
            work.accounts.set_password(name, hashed)

    def set_roles(self, name: str, roles: Iterable[Role]) -> None:
        """
        Give a user other roles; their tokens have no others from then on.

        Raises:
            NotFound: there is no such user.
        """
        with self._database.begin() as work:
            work.accounts.set_roles(name, roles)

    def set_disabled(self, name: str, *, disabled: bool) -> None:
        """
        Lock a user out, with all their tokens, or let them in again.

        Raises:
            NotFound: there is no such user.
        """
        with self._database.begin() as work:
            work.accounts.set_disabled(name, disabled=disabled)

    def create_token(
        self,
        user: str,
        *,
        name: str,
        life: timedelta,
        roles: Iterable[Role] | None = None,
        scopes: Iterable[Scope] = ALL_SCOPES,
    ) -> tuple[Token, str]:
        """
        Make a token.

        Args:
            user: Whose.
            name: What it is for.
            life: How long it can be used.
            roles: Those of their roles that it gives; all by default.
            scopes: What it can be used for.

        Returns:
            The token, and its secret, which nobody can find out afterwards.

        Raises:
            NotFound: there is no such user.
            InvalidInput: they have not these roles, or the life is no such time.
        """
        if not timedelta() < life <= MAX_TOKEN_LIFE:
            raise InvalidInput(f"a token lives for at most {MAX_TOKEN_LIFE.days} days")
        secret = new_secret()
        with self._database.begin() as work:
            owner = work.accounts.get(user)
            given = owner.roles if roles is None else frozenset(roles)
            if missing := given - owner.roles:
                raise InvalidInput(f"{user} has not the role {min(missing)}; see `morpheo user ls`")
            now = work.accounts.now()
            token = Token(
                id=secrets.token_hex(4),
                user=user,
                name=name,
                roles=given,
                scopes=frozenset(scopes),
                created_at=now,
                expires_at=now + life,
            )
            work.accounts.add_token(token, secret_digest(secret))
        return token, secret

    def tokens(self, user: str | None = None) -> list[Token]:
        """Return the tokens of a user, or all, oldest first."""
        with self._database.read() as work:
            return work.accounts.tokens(user)

    def revoke(self, token_id: str) -> bool:
        """
        End a token; return whether it had not been before.

        Raises:
            NotFound: there is none of that id.
        """
        with self._database.begin() as work:
            return work.accounts.revoke(token_id)


def _checked_name(text: str) -> str:
    """
    Return the name of a new user.

    Raises:
        InvalidInput: it cannot be one.
    """
    if not is_name(text) or text == ORCHESTRATOR_OF_2017.name:
        raise InvalidInput(
            "a user's name has 1 to 64 letters, digits, dots, underscores, hyphens or @, and begins with a letter or "
            f"digit; {ORCHESTRATOR_OF_2017.name} is taken",
            field="name",
        )
    return text


def _checked_password(text: str) -> str:
    """
    Return a new password.

    Raises:
        InvalidInput: it is too short or too long.
    """
    if len(text) < MIN_PASSWORD or len(text.encode("utf-8", "surrogatepass")) > MAX_PASSWORD:
        raise InvalidInput(f"a password has {MIN_PASSWORD} letters or more, and at most {MAX_PASSWORD} bytes")
    return text
