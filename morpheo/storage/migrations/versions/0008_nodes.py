"""Nodes, and which of them a job should avoid."""

import sqlalchemy as sa
from alembic import op

revision = '0008'
down_revision = '0007'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('nodes',
    sa.Column('node', sa.String(length=64), nullable=False),
    sa.Column('name', sa.String(length=255), nullable=False),
    sa.Column('queues', sa.Text(), nullable=False),
    sa.Column('last_seen', sa.Double(), nullable=False),
    sa.Column('resumed_at', sa.Double(), nullable=True),
    sa.PrimaryKeyConstraint('node', 'name', name=op.f('pk_nodes'))
    )
    with op.batch_alter_table('jobs', schema=None) as batch_op:
        batch_op.add_column(sa.Column('node', sa.String(length=64), nullable=True))
        batch_op.add_column(sa.Column('avoid_node', sa.String(length=64), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table('jobs', schema=None) as batch_op:
        batch_op.drop_column('avoid_node')
        batch_op.drop_column('node')

    op.drop_table('nodes')
