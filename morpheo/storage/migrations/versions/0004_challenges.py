"""Challenges, chains, and reports to an outside orchestrator."""

import sqlalchemy as sa
from alembic import op

revision = '0004'
down_revision = '0003'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('datasets',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('created_at', sa.Double(), nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_datasets'))
    )
    op.create_table('problems',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('workflow_id', sa.Uuid(), nullable=False),
    sa.Column('test_data', sa.JSON(), nullable=False),
    sa.Column('batch_size', sa.BigInteger(), nullable=False),
    sa.Column('higher_is_better', sa.Boolean(), server_default=sa.true(), nullable=False),
    sa.Column('parallel_ranks', sa.BigInteger(), nullable=False),
    sa.Column('created_at', sa.Double(), nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_problems'))
    )
    op.create_table('problem_data',
    sa.Column('problem_id', sa.Uuid(), nullable=False),
    sa.Column('position', sa.BigInteger(), autoincrement=False, nullable=False),
    sa.Column('dataset_id', sa.Uuid(), nullable=False),
    sa.ForeignKeyConstraint(['dataset_id'], ['datasets.id'], name=op.f('fk_problem_data_dataset_id_datasets')),
    sa.ForeignKeyConstraint(['problem_id'], ['problems.id'], name=op.f('fk_problem_data_problem_id_problems')),
    sa.PrimaryKeyConstraint('problem_id', 'position', name=op.f('pk_problem_data')),
    sa.UniqueConstraint('problem_id', 'dataset_id', name=op.f('uq_problem_data_problem_id_dataset_id'))
    )
    with op.batch_alter_table('problem_data', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_problem_data_dataset_id'), ['dataset_id'], unique=False)

    op.create_table('reports',
    sa.Column('job_id', sa.Uuid(), nullable=False),
    sa.Column('number', sa.BigInteger(), autoincrement=False, nullable=False),
    sa.Column('path', sa.Text(), nullable=False),
    sa.Column('body', sa.JSON(), nullable=False),
    sa.Column('tries', sa.BigInteger(), nullable=False),
    sa.Column('not_before', sa.Double(), nullable=False),
    sa.Column('created_at', sa.Double(), nullable=False),
    sa.ForeignKeyConstraint(['job_id'], ['jobs.id'], name=op.f('fk_reports_job_id_jobs')),
    sa.PrimaryKeyConstraint('job_id', 'number', name=op.f('pk_reports'))
    )
    with op.batch_alter_table('reports', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_reports_not_before'), ['not_before'], unique=False)

    op.create_table('submissions',
    sa.Column('algo_id', sa.Uuid(), nullable=False),
    sa.Column('problem_id', sa.Uuid(), nullable=False),
    sa.Column('name', sa.Text(), nullable=False),
    sa.Column('stalled', sa.Boolean(), server_default=sa.false(), nullable=False),
    sa.Column('created_at', sa.Double(), nullable=False),
    sa.ForeignKeyConstraint(['problem_id'], ['problems.id'], name=op.f('fk_submissions_problem_id_problems')),
    sa.PrimaryKeyConstraint('algo_id', name=op.f('pk_submissions'))
    )
    with op.batch_alter_table('submissions', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_submissions_problem_id'), ['problem_id'], unique=False)

    with op.batch_alter_table('jobs', schema=None) as batch_op:
        batch_op.add_column(sa.Column('planned', sa.Boolean(), server_default=sa.false(), nullable=False))
        batch_op.add_column(sa.Column('rank', sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column('perf', sa.Double(), nullable=True))
        batch_op.add_column(sa.Column('train_files', sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column('result_id', sa.Uuid(), nullable=True))
        batch_op.create_index('ix_jobs_chain', ['algo_id', 'state', 'rank'], unique=False)
        batch_op.create_index('ix_jobs_best', ['problem_id', 'planned', 'kind', 'state', 'perf', 'rank', 'algo_id', 'train_files', 'id'], unique=False)
        batch_op.create_index('uq_jobs_live_rank', ['algo_id', 'rank'], unique=True, sqlite_where=sa.text("planned AND rank IS NOT NULL AND state NOT IN ('failed', 'cancelled')"), postgresql_where=sa.text("planned AND rank IS NOT NULL AND state NOT IN ('failed', 'cancelled')"))



def downgrade() -> None:
    with op.batch_alter_table('jobs', schema=None) as batch_op:
        batch_op.drop_index('uq_jobs_live_rank', sqlite_where=sa.text("planned AND rank IS NOT NULL AND state NOT IN ('failed', 'cancelled')"), postgresql_where=sa.text("planned AND rank IS NOT NULL AND state NOT IN ('failed', 'cancelled')"))
        batch_op.drop_index('ix_jobs_best')
        batch_op.drop_index('ix_jobs_chain')
        batch_op.drop_column('result_id')
        batch_op.drop_column('train_files')
        batch_op.drop_column('perf')
        batch_op.drop_column('rank')
        batch_op.drop_column('planned')

    with op.batch_alter_table('submissions', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_submissions_problem_id'))

    op.drop_table('submissions')
    with op.batch_alter_table('reports', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_reports_not_before'))

    op.drop_table('reports')
    with op.batch_alter_table('problem_data', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_problem_data_dataset_id'))

    op.drop_table('problem_data')
    op.drop_table('problems')
    op.drop_table('datasets')
