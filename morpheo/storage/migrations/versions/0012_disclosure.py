"""What goes out of problems, and who submitted algos."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for column in (
        sa.Column("logs", sa.String(16), server_default="cause", nullable=False),
        sa.Column("model_download", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("score_digits", sa.BigInteger(), server_default="6", nullable=False),
        sa.Column("submissions_per_day", sa.BigInteger(), server_default="10", nullable=True),
        sa.Column("time_step_s", sa.BigInteger(), server_default="60", nullable=False),
    ):
        op.add_column("problems", column)
    op.create_index("ix_jobs_result_id", "jobs", ["result_id"])


def downgrade() -> None:
    op.drop_index("ix_jobs_result_id", table_name="jobs")
    for name in ("time_step_s", "submissions_per_day", "score_digits", "model_download", "logs"):
        op.drop_column("problems", name)
