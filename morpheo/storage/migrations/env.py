"""What Alembic runs for each migration command; the connection comes from `morpheo.storage.migrate`."""

from alembic import context

from morpheo.storage.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
