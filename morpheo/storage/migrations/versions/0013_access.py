"""Users, their tokens, and whom things belong to."""

import os

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_OWNED = ("artifacts", "jobs", "problems", "submissions", "datasets")
_INDEXES = {"artifacts": ["owner", "kind", "created_at"], "jobs": ["owner", "state"]}


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=True),
        sa.Column("roles", sa.String(64), nullable=False),
        sa.Column("disabled", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_users"),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("user_name", sa.String(64), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("roles", sa.String(64), nullable=False),
        sa.Column("scopes", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.Column("last_used_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["user_name"], ["users.name"], name="fk_tokens_user_name_users"),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        sa.UniqueConstraint("sha256", name="uq_tokens_sha256"),
    )
    op.create_index("ix_tokens_user_name", "tokens", ["user_name"])
    # There was one user, whom all that is there belongs to. "u" was the default, as in 2017.
    first = os.environ.get("MORPHEO_USER") or "u"
    for table in _OWNED:
        op.add_column(table, sa.Column("owner", sa.String(64), server_default="", nullable=False))
        op.execute(sa.text(f"UPDATE {table} SET owner = :owner").bindparams(owner=first[:64]))
    op.add_column("jobs", sa.Column("held_by", sa.String(64), nullable=True))
    for table, columns in _INDEXES.items():
        op.create_index(f"ix_{table}_{'_'.join(columns)}", table, columns)
    op.create_index("ix_jobs_held_by", "jobs", ["held_by"])


def downgrade() -> None:
    op.drop_index("ix_jobs_held_by", table_name="jobs")
    for table, columns in _INDEXES.items():
        op.drop_index(f"ix_{table}_{'_'.join(columns)}", table_name=table)
    op.drop_column("jobs", "held_by")
    for table in _OWNED:
        op.drop_column(table, "owner")
    op.drop_index("ix_tokens_user_name", table_name="tokens")
    op.drop_table("tokens")
    op.drop_table("users")
