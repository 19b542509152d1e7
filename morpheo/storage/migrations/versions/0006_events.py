"""The audit trail, which refuses to be changed."""

import sqlalchemy as sa
from alembic import op

revision = '0006'
down_revision = '0005'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('events',
    sa.Column('seq', sa.BigInteger(), autoincrement=False, nullable=False),
    sa.Column('at', sa.Double(), nullable=False),
    sa.Column('actor', sa.Text(), nullable=False),
    sa.Column('action', sa.String(length=64), nullable=False),
    sa.Column('subject_kind', sa.String(length=64), nullable=False),
    sa.Column('subject_id', sa.Text(), nullable=False),
    sa.Column('detail', sa.Text(), nullable=False),
    sa.Column('previous', sa.String(length=64), nullable=False),
    sa.Column('digest', sa.String(length=64), nullable=False),
    sa.PrimaryKeyConstraint('seq', name=op.f('pk_events'))
    )
    with op.batch_alter_table('events', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_events_subject_id_seq'), ['subject_id', 'seq'], unique=False)

    head = op.create_table('event_head',
    sa.Column('id', sa.BigInteger(), autoincrement=False, nullable=False),
    sa.Column('seq', sa.BigInteger(), nullable=False),
    sa.Column('digest', sa.String(length=64), nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_event_head'))
    )
    op.bulk_insert(head, [{'id': 1, 'seq': 0, 'digest': '0' * 64}])
    if op.get_bind().dialect.name == 'postgresql':
        op.execute(
            "CREATE FUNCTION refuse_change_of_events() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'events are only appended'; END $$"
        )
        op.execute(
            "CREATE TRIGGER events_only_appended BEFORE UPDATE OR DELETE OR TRUNCATE ON events "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_events()"
        )
    else:
        for action in ('update', 'delete'):
            op.execute(
                f"CREATE TRIGGER events_no_{action} BEFORE {action} ON events "
                "BEGIN SELECT RAISE(ABORT, 'events are only appended'); END"
            )


def downgrade() -> None:
    op.drop_table('event_head')
    op.drop_table('events')
    if op.get_bind().dialect.name == 'postgresql':
        op.execute("DROP FUNCTION refuse_change_of_events()")
