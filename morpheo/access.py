"""
Who is who, and what belongs to whom: principals, roles, scopes and tokens.

Only the standard library is imported here. An admin may do everything. A custodian keeps problems and data, and sees
all that became of them. A submitter keeps algos, and sees what custodians let out of them. A worker is not ours; it
takes jobs, and sees what these need. A reader sees problems and leaderboards.

Uploads, problems, data, submissions and jobs have an owner, the name of a user. Others see them only if they follow
from what is theirs: a custodian sees the algos, jobs, models and predictions of the problems that are theirs
(`morpheo.storage.visibility`).
"""

from __future__ import annotations

import enum
import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

#: How a token begins, so that people and scanners of secrets know it when they see it.
TOKEN_PREFIX = "morpheo_"  # noqa: S105 - no secret
#: A whole token: the prefix and 256 random bits in base64url.
TOKEN = re.compile(rf"\b{TOKEN_PREFIX}[A-Za-z0-9_-]{{43}}(?![A-Za-z0-9_-])")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


class Role(enum.StrEnum):
    """What somebody is trusted with."""

    ADMIN = "admin"
    CUSTODIAN = "custodian"
    SUBMITTER = "submitter"
    WORKER = "worker"
    READER = "reader"


class Scope(enum.StrEnum):
    """What a token can be used for, of all that its roles allow."""

    #: Requests that change nothing.
    READ = "read"
    #: All others.
    WRITE = "write"


ALL_SCOPES = frozenset(Scope)


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Somebody who calls, as far as is known."""

    #: Name of the user; the owner of what they upload or order.
    name: str
    roles: frozenset[Role]
    #: Less than all for some tokens.
    scopes: frozenset[Scope] = ALL_SCOPES
    #: Id of the token that was sent, empty for a password.
    token: str = ""
    #: Whether their orders at the compute API may name anything, though they have no role.
    orders_anything: bool = False

    def has(self, *roles: Role) -> bool:
        """Return whether one of these roles is theirs; an admin has all."""
        return Role.ADMIN in self.roles or not self.roles.isdisjoint(roles)

    @property
    def is_admin(self) -> bool:
        """Whether they may do everything."""
        return Role.ADMIN in self.roles

    def only(self, roles: Iterable[Role]) -> Principal:
        """Return the same one with no other roles than these, besides admin."""
        return replace(self, roles=self.roles & {Role.ADMIN, *roles})


#: Nobody who was asked.
NOBODY = Principal(name="", roles=frozenset())
#: Morpheo itself, and commands that work on the database. What it makes belongs to nobody but admins.
SYSTEM = Principal(name="", roles=frozenset({Role.ADMIN}))
#: Whoever orders at the compute API without a password, where that is allowed: an orchestrator of 2017 sends none.
ORCHESTRATOR_OF_2017 = Principal(name="orchestrator-of-2017", roles=frozenset(), orders_anything=True)


@dataclass(frozen=True, kw_only=True)
class User:
    """Somebody with an account."""

    name: str
    roles: frozenset[Role]
    disabled: bool = False
    #: In the form of argon2; None for somebody who has tokens only.
    password_hash: str | None = None
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Token:
    """An API token; the secret itself is kept nowhere."""

    #: Eight letters that name it in lists and in the audit trail, and tell nothing of the secret.
    id: str
    user: str
    #: What it is for, in its owner's words.
    name: str
    #: It gives those of them that its owner has at the moment.
    roles: frozenset[Role]
    scopes: frozenset[Scope]
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None = None
    #: To the minute.
    last_used_at: datetime | None = None


def new_secret() -> str:
    """Return the text of a new token."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def secret_digest(secret: str) -> str:
    """
    Return what is stored of a token: its SHA-256, hexadecimal.

    256 random bits cannot be guessed, so nothing slower is needed.
    """
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def is_name(text: str) -> bool:
    """Return whether a text can be the name of a user."""
    return _NAME.fullmatch(text) is not None
