"""The server process: active-passive replication of an ordered key-value store."""

__version__ = "0.1.0"
