"""The index that leaderboards read has the order in which they read it."""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_NAME = "ix_jobs_best"
_FIRST = ["problem_id", "planned", "kind", "state"]


def upgrade() -> None:
    op.drop_index(_NAME, table_name="jobs")
    op.create_index(_NAME, "jobs", [*_FIRST, "algo_id", "rank", "perf", "train_files", "id"])


def downgrade() -> None:
    op.drop_index(_NAME, table_name="jobs")
    op.create_index(_NAME, "jobs", [*_FIRST, "perf", "rank", "algo_id", "train_files", "id"])
