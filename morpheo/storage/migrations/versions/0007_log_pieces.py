"""Logs in pieces while their steps run."""

import sqlalchemy as sa
from alembic import op

revision = '0007'
down_revision = '0006'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('log_pieces',
    sa.Column('job_id', sa.Uuid(), nullable=False),
    sa.Column('attempt', sa.BigInteger(), autoincrement=False, nullable=False),
    sa.Column('step', sa.String(length=16), nullable=False),
    sa.Column('number', sa.BigInteger(), autoincrement=False, nullable=False),
    sa.Column('start', sa.BigInteger(), nullable=False),
    sa.Column('size_bytes', sa.BigInteger(), nullable=False),
    sa.Column('blob_key', sa.Text(), nullable=False),
    sa.ForeignKeyConstraint(['job_id', 'attempt', 'step'], ['steps.job_id', 'steps.attempt', 'steps.name'], name=op.f('fk_log_pieces_job_id_attempt_step_steps')),
    sa.PrimaryKeyConstraint('job_id', 'attempt', 'step', 'number', name=op.f('pk_log_pieces'))
    )
    with op.batch_alter_table('steps', schema=None) as batch_op:
        batch_op.add_column(sa.Column('log_bytes', sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column('log_gap_at', sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column('log_gap_bytes', sa.BigInteger(), server_default='0', nullable=False))


def downgrade() -> None:
    with op.batch_alter_table('steps', schema=None) as batch_op:
        batch_op.drop_column('log_gap_bytes')
        batch_op.drop_column('log_gap_at')
        batch_op.drop_column('log_bytes')
    op.drop_table('log_pieces')
