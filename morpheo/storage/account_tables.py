"""The tables of users and their tokens."""

from __future__ import annotations

from sqlalchemy import ForeignKey, Text, false
from sqlalchemy.orm import Mapped, mapped_column

from morpheo.storage.tables import Base


class UserRow(Base):
    """Somebody with an account."""

    __tablename__ = "users"

    name: Mapped[str] = mapped_column(primary_key=True)
    #: None for somebody who has tokens only.
    password_hash: Mapped[str | None] = mapped_column(Text())
    #: Sorted and joined with commas.
    roles: Mapped[str]
    disabled: Mapped[bool] = mapped_column(default=False, server_default=false())
    created_at: Mapped[float]


class TokenRow(Base):
    """One API token, of which only a digest is kept."""

    __tablename__ = "tokens"

    id: Mapped[str] = mapped_column(primary_key=True)
    user_name: Mapped[str] = mapped_column(ForeignKey("users.name"), index=True)
    sha256: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str] = mapped_column(Text())
    #: Each sorted and joined with commas.
    roles: Mapped[str]
    scopes: Mapped[str]
    created_at: Mapped[float]
    expires_at: Mapped[float]
    revoked_at: Mapped[float | None]
    last_used_at: Mapped[float | None]
