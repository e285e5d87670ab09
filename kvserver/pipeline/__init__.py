"""Flow: requests to log entries, committed entries to results. Knows neither gRPC nor LMDB."""
