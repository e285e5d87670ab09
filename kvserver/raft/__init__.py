"""Agreement: one leader, one log. The only room that knows PySyncObj."""
