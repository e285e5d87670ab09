"""State: keys, revisions, transactions. Deterministic; knows storage only."""
