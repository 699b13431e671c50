"""Results as tables: one neutral model of a table, and what it looks like in each format."""
