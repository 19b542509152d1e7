"""Changes of the tables, in order; applied by `morpheo migrate`."""
