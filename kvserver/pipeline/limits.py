"""Limits at the door: no flood fills memory, no burst of dead requests meets a promotion."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of one node. Beyond them the answer is `etcdserver: too many requests`."""

    request_bytes_max: int = 1_572_864
    """One request, as in etcd."""
    pending_requests_max: int = 20_000
    pending_bytes_max: int = 256 << 20
    """Of writes that wait for their result."""
    parked_requests_max: int = 4_096
    """Waiting for an election to end."""
    parked_s: float = 1.0
    request_timeout_s: float = 5.0
    """After this a write is answered as of unknown outcome, a read as timed out."""
    batch_commands_max: int = 1_000
    batch_bytes_max: int = 1 << 20
