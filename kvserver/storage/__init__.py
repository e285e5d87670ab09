"""Disk: one LMDB environment for the state, files for the log. The only room that knows LMDB."""
