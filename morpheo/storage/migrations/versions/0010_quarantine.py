"""Artifacts whose blob was found lost or damaged."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = '0008'
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("artifacts", schema=None) as batch_op:
        batch_op.add_column(sa.Column("quarantined_at", sa.Double(), nullable=True))
        batch_op.add_column(sa.Column("quarantine_reason", sa.Text(), nullable=True))
        batch_op.create_index(batch_op.f("ix_artifacts_quarantined_at"), ["quarantined_at"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("artifacts", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_artifacts_quarantined_at"))
        batch_op.drop_column("quarantine_reason")
        batch_op.drop_column("quarantined_at")
