"""Bench: starts real node processes, hurts them, and measures what a client sees."""
