"""Users and tokens in the database, and what quotas count."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import func, insert, or_, select, update
from sqlalchemy.orm import Session

from morpheo.access import Role, Scope, Token, User
from morpheo.audit import Action
from morpheo.errors import Conflict, NotFound
from morpheo.models import ArtifactKind, JobKind, JobState
from morpheo.storage.account_tables import TokenRow, UserRow
from morpheo.storage.clock import database_now, to_datetime
from morpheo.storage.events import EventRepository
from morpheo.storage.tables import ArtifactRow, JobRow

#: How exactly it is known when a token was last used, in seconds: not each request is a write.
LAST_USE_S = 60
DAY_S = 24 * 3600


class AccountRepository:
    """Reads and writes users and tokens in one transaction."""

    def __init__(self, session: Session, events: EventRepository) -> None:
        self._session = session
        self._events = events

    def add(self, name: str, roles: Iterable[Role], password_hash: str | None) -> None:
        """
        Insert a user.

        Raises:
            Conflict: one of that name exists.
        """
        if self.find(name) is not None:
            raise Conflict(f"there is a user {name} already; see `morpheo user --help` for how to change one")
        values = {"name": name, "roles": _joined(roles), "password_hash": password_hash, "created_at": database_now()}
        self._session.execute(insert(UserRow).values(values))
        self._events.record(Action.USER_ADDED, "user", name, roles=_joined(roles), password=password_hash is not None)

    def get(self, name: str) -> User:
        """
        Return a user.

        Raises:
            NotFound: there is none of that name.
        """
        row = self._session.get(UserRow, name)
        if row is None:
            raise NotFound(f"user {name} not found")
        return _to_user(row)

    def find(self, name: str) -> User | None:
        """Return a user, None if there is none of that name."""
        row = self._session.get(UserRow, name)
        return None if row is None else _to_user(row)

    def all(self) -> list[User]:
        """Return all users by name."""
        return [_to_user(row) for row in self._session.scalars(select(UserRow).order_by(UserRow.name))]

    def set_password(self, name: str, password_hash: str | None) -> None:
        """
        Give a user another password, or none.

        Raises:
            NotFound: there is none of that name.
        """
        self._change(name, "password", password_hash=password_hash)

    def set_roles(self, name: str, roles: Iterable[Role]) -> None:
        """
        Give a user other roles.

        Raises:
            NotFound: there is none of that name.
        """
        self._change(name, _joined(roles), roles=_joined(roles))

    def set_disabled(self, name: str, *, disabled: bool) -> None:
        """
        Lock a user out, with all their tokens, or let them in again.

        Raises:
            NotFound: there is none of that name.
        """
        self._change(name, "disabled" if disabled else "enabled", disabled=disabled)

    def _change(self, name: str, told: str, **values: object) -> None:
        changed = update(UserRow).where(UserRow.name == name).values(**values).returning(UserRow.name)
        if self._session.scalar(changed) is None:
            raise NotFound(f"user {name} not found")
        self._events.record(Action.USER_CHANGED, "user", name, change=told)

    def add_token(self, token: Token, digest: str) -> None:
        """Insert a token, of which only the digest of its secret is given."""
        self._session.execute(
            insert(TokenRow).values(
                id=token.id,
                user_name=token.user,
                sha256=digest,
                name=token.name,
                roles=_joined(token.roles),
                scopes=_joined(token.scopes),
                created_at=token.created_at.timestamp(),
                expires_at=token.expires_at.timestamp(),
            )
        )
        told = {"roles": _joined(token.roles), "scopes": _joined(token.scopes), "expires_at": token.expires_at}
        self._events.record(Action.TOKEN_CREATED, "token", token.id, user=token.user, **told)

    def valid_token(self, digest: str) -> tuple[Token, User] | None:
        """Return the token with that digest and its user, None if there is none that can be used now."""
        usable = (TokenRow.revoked_at.is_(None), TokenRow.expires_at > database_now(), UserRow.disabled.is_(False))
        query = select(TokenRow, UserRow).join(UserRow, UserRow.name == TokenRow.user_name)
        found = self._session.execute(query.where(TokenRow.sha256 == digest, *usable)).one_or_none()
        return None if found is None else (_to_token(found[0]), _to_user(found[1]))

    def tokens(self, user: str | None = None) -> list[Token]:
        """Return the tokens of a user, or all, oldest first."""
        query = select(TokenRow).order_by(TokenRow.created_at, TokenRow.id)
        rows = self._session.scalars(query if user is None else query.where(TokenRow.user_name == user))
        return [_to_token(row) for row in rows]

    def used(self, token_id: str) -> None:
        """Note that a token is in use."""
        stale = or_(TokenRow.last_used_at.is_(None), TokenRow.last_used_at < database_now() - LAST_USE_S)
        self._session.execute(
            update(TokenRow).where(TokenRow.id == token_id, stale).values(last_used_at=database_now())
        )

    def revoke(self, token_id: str) -> bool:
        """
        End a token; return whether it had not been before.

        Raises:
            NotFound: there is none of that id.
        """
        if self._session.get(TokenRow, token_id) is None:
            raise NotFound(f"token {token_id} not found")
        lives = update(TokenRow).where(TokenRow.id == token_id, TokenRow.revoked_at.is_(None))
        revoked = self._session.scalar(lives.values(revoked_at=database_now()).returning(TokenRow.id)) is not None
        if revoked:
            self._events.record(Action.TOKEN_REVOKED, "token", token_id)
        return revoked

    def record_failed_login(self, name: str | None) -> None:
        """Record that logins failed again and again: in the name of a user, or in no known one."""
        self._events.record(Action.LOGIN_FAILED, "user", name or "unknown")

    def orders_waiting(self, owner: str) -> int:
        """Return how many orders of a user no worker has yet; ranks of chains are not counted."""
        waits = JobRow.state.in_([JobState.QUEUED.value, JobState.WAITING.value])
        single = or_(JobRow.planned.is_(False), JobRow.kind == JobKind.PREDICT.value)
        query = select(func.count()).select_from(JobRow).where(JobRow.owner == owner, waits, single)
        return self._session.scalar(query) or 0

    def uploads_today(self, owner: str, kind: ArtifactKind) -> tuple[int, float]:
        """Return how many artifacts of a kind a user got within 24 hours, and when the first is older, in seconds."""
        since = ArtifactRow.created_at > database_now() - DAY_S
        query = select(func.count(), func.min(ArtifactRow.created_at) + DAY_S - database_now())
        count, wait_s = self._session.execute(
            query.where(ArtifactRow.owner == owner, ArtifactRow.kind == kind.value, since)
        ).one()
        return count, wait_s or 0.0

    def now(self) -> datetime:
        """Return the time by the database's clock, which the expiry of tokens is compared with."""
        return to_datetime(self._session.scalar(select(database_now())) or 0.0)


def _joined(words: Iterable[Role] | Iterable[Scope]) -> str:
    return ",".join(sorted(words))


def _to_user(row: UserRow) -> User:
    return User(
        name=row.name,
        roles=frozenset(Role(role) for role in row.roles.split(",") if role),
        disabled=row.disabled,
        password_hash=row.password_hash,
        created_at=to_datetime(row.created_at),
    )


def _to_token(row: TokenRow) -> Token:
    return Token(
        id=row.id,
        user=row.user_name,
        name=row.name,
        roles=frozenset(Role(role) for role in row.roles.split(",") if role),
        scopes=frozenset(Scope(scope) for scope in row.scopes.split(",") if scope),
        created_at=to_datetime(row.created_at),
        expires_at=to_datetime(row.expires_at),
        revoked_at=None if row.revoked_at is None else to_datetime(row.revoked_at),
        last_used_at=None if row.last_used_at is None else to_datetime(row.last_used_at),
    )
