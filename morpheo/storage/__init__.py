"""What is kept: rows in a SQL database, bytes in a blob store."""
