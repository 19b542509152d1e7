"""What stalled a chain, in place of whether it is stalled."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# The rank that ended last without a model and has no other job: what was stalled before knew no more.
_STALLED_BY = """
UPDATE submissions SET stalled_by = (
    SELECT dead.id FROM jobs AS dead
    WHERE dead.algo_id = submissions.algo_id AND dead.planned AND dead.rank IS NOT NULL
    AND dead.state IN ('failed', 'cancelled') AND NOT EXISTS (
        SELECT 1 FROM jobs AS live
        WHERE live.algo_id = dead.algo_id AND live.planned AND live.rank = dead.rank
        AND live.state NOT IN ('failed', 'cancelled')
    )
    ORDER BY dead.ended_at DESC, dead.rank DESC LIMIT 1
) WHERE stalled
"""


def upgrade() -> None:
    with op.batch_alter_table('submissions', schema=None) as batch_op:
        batch_op.add_column(sa.Column('stalled_by', sa.Uuid(), nullable=True))
    op.execute(_STALLED_BY)
    with op.batch_alter_table('submissions', schema=None) as batch_op:
        batch_op.drop_column('stalled')


def downgrade() -> None:
    with op.batch_alter_table('submissions', schema=None) as batch_op:
        batch_op.add_column(sa.Column('stalled', sa.Boolean(), server_default=sa.false(), nullable=False))
    op.execute("UPDATE submissions SET stalled = (stalled_by IS NOT NULL)")
    with op.batch_alter_table('submissions', schema=None) as batch_op:
        batch_op.drop_column('stalled_by')
