"""Every option of the server: name, default, unit, limit, and which combinations make sense.

A value comes from the command line, else from the environment (`KV_DATA_DIR` for `--data-dir`),
else from the TOML file named by `--config` (`data-dir = "..."`), else it is the default here.
"""

import ipaddress
import re
from dataclasses import dataclass, field, fields
from itertools import combinations
from pathlib import Path
from typing import Any, Final

from kvserver.errors import UsageError

_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")
_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:h|ms|m|s))+")
_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s)")
_UNIT_S: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_YEAR_S: Final = 31_536_000
MIB: Final = 1 << 20
GIB: Final = 1 << 30
QUOTA_BYTES_DEFAULT: Final = 2 * GIB
"""As etcd's."""

QUOTA_BYTES_ADVISED_MAX: Final = 8 * GIB
QUOTA_BYTES_MAX: Final = 48 * GIB
"""Three quarters of the address space that the storage reserves: the rest is for the log and for
pages that are free. So it is the quota that says no, never a full map."""

_ALL_ADDRESSES: Final = {"0.0.0.0", "::"}  # noqa: S104 - what is refused


def option(default: Any, text: str) -> Any:
    """A field of Config with its help text."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Retention:
    """What auto-compaction keeps: by age or by number; neither if it is off."""

    period_s: float = 0.0
    revisions: int = 0


@dataclass(frozen=True)
class Config:
    """Options as given, checked against each other by `check`."""

    name: str = option("default", "Name of this member, unique in the cluster.")
    data_dir: str = option("", "Directory of this member's data. [default: <name>.kv]")
    initial_cluster: str = option(
        "", "All members a new cluster starts with: name=host:port,... [default: this one alone]"
    )
    initial_cluster_state: str = option(
        "new", "new: start a cluster. existing: be taken in by one, after 'kv member add'."
    )
    initial_cluster_token: str = option(
        "kvserver", "Tells clusters apart; the same on all members of one."
    )
    listen_peer: str = option("127.0.0.1:2380", "host:port for the other members.")
    listen_client: str = option("127.0.0.1:2379", "host:port for clients.")
    advertise_client: str = option(
        "", "host:port that clients are told to use. [default: --listen-client]"
    )
    listen_http: str = option(
        "", "host:port for health checks and metrics by HTTP. [default: none]"
    )
    allow_insecure: bool = option(
        False, "Listen without TLS on addresses that are not loopback. Anybody there may write."
    )
    heartbeat_ms: int = option(50, "How often the active tells that it lives.")
    election_timeout_ms_min: int = option(300, "Shortest silence after which a standby stands.")
    election_timeout_ms_max: int = option(600, "Longest such silence; each time a random one.")
    check_quorum_ms: int = option(600, "Without a quorum for so long the active steps down.")
    dead_peer_ms: int = option(1500, "A silent peer connection is dropped after so long.")
    request_timeout_ms: int = option(5000, "Longest time a request waits for its result.")
    watch_progress_interval_ms: int = option(
        600_000,
        "A watch without events is told so often how far it is, if its client asked for it.",
    )
    log_keep_entries: int = option(
        10_000, "Applied log entries kept for standbys that are behind; others get a copy."
    )
    quota_bytes: int = option(
        QUOTA_BYTES_DEFAULT,
        "What keys, values and their history may take on the disk; above it puts are refused. "
        "0 for the default; below 0 for the most that is possible, 48 GiB.",
    )
    scrub_interval_s: int = option(
        3_600,
        "Pause between two verifications of the data on the disk; 0 for none but the one at the "
        "start.",
    )
    auto_compaction_mode: str = option(
        "periodic", "periodic: keep old revisions by age. revision: by number."
    )
    auto_compaction_retention: str = option(
        "1h",
        "What is kept: 1h, 30m, 1h30m or a number of hours; with mode revision the number of the "
        "newest revisions; 0 or off to keep all.",
    )
    corrupt_check_interval_s: int = option(
        600, "Pause between two comparisons of the members' data; 0 for none."
    )
    log_level: str = option("info", "debug, info, warning or error.")
    restart: bool = option(
        True, "After a failed write to the disk start over from it, instead of exiting."
    )

    # ------------------------------------------------------------------ derived

    @property
    def data_path(self) -> Path:
        """The data directory."""
        return Path(self.data_dir or f"{self.name}.kv")

    @property
    def members(self) -> dict[str, str]:
        """Name -> peer address of the initial members."""
        if not self.initial_cluster:
            return {self.name: self.listen_peer}
        return parse_members(self.initial_cluster)

    @property
    def client_address(self) -> str:
        """host:port that clients are told to use."""
        return self.advertise_client or self.listen_client

    @property
    def http_address(self) -> tuple[str, int] | None:
        """Host and port of --listen-http, None without it."""
        return parse_address("--listen-http", self.listen_http) if self.listen_http else None

    @property
    def retention(self) -> Retention:
        """What auto-compaction keeps.

        Raises:
            UsageError: the options do not say.
        """
        value, mode = self.auto_compaction_retention, self.auto_compaction_mode
        if mode not in {"periodic", "revision"}:
            raise UsageError(f"--auto-compaction-mode '{mode}': use periodic or revision")
        if value in {"off", "0"}:
            return Retention()
        if mode == "revision":
            if not (value.isascii() and value.isdigit()):
                raise UsageError(
                    f"--auto-compaction-retention {value}: with --auto-compaction-mode revision "
                    "give how many revisions to keep, such as 10000"
                )
            return Retention(revisions=int(value))
        period_s = parse_period("--auto-compaction-retention", value)
        if not 1 <= period_s <= _YEAR_S:
            raise UsageError(f"--auto-compaction-retention {value}: use 1s to 8760h, or off")
        return Retention(period_s=period_s)

    @property
    def quota(self) -> int:
        """The quota in force, in bytes."""
        if self.quota_bytes < 0:
            return QUOTA_BYTES_MAX
        return self.quota_bytes or QUOTA_BYTES_DEFAULT

    # ------------------------------------------------------------------ checks

    def check(self) -> None:
        """Refuse what can't work.

        Raises:
            UsageError: names the option and what to do.
        """
        if not _NAME.fullmatch(self.name):
            raise UsageError(f"--name '{self.name}': use letters, digits, '-', '_' and '.'")
        listening = ("listen_peer", "listen_client", "listen_http")
        for attribute in (*listening, "advertise_client"):
            self._check_address(attribute)
        for one, other in combinations(listening, 2):
            if getattr(self, one) == getattr(self, other):
                raise UsageError(
                    f"{flag_name(one)} and {flag_name(other)} are the same address; use two"
                )
        if parse_address("--listen-client", self.client_address)[0] in _ALL_ADDRESSES:
            if self.advertise_client:
                raise UsageError(
                    f"--advertise-client {self.advertise_client} stands for all addresses; "
                    "give the one that clients should use"
                )
            raise UsageError(
                "--listen-client listens on all addresses, so say which one clients should use: "
                "--advertise-client host:port"
            )
        members = self.members
        if self.name not in members:
            raise UsageError(
                f"--initial-cluster does not name this member, '{self.name}' (--name); "
                f"it names {', '.join(sorted(members))}"
            )
        self._check_state(members)
        self._check_times()
        self._check_numbers()
        if self.log_level not in {"debug", "info", "warning", "error"}:
            raise UsageError(f"--log-level '{self.log_level}': use debug, info, warning or error")

    def _check_numbers(self) -> None:
        if not 10 <= self.log_keep_entries <= 10_000_000:
            raise UsageError(f"--log-keep-entries {self.log_keep_entries}: use 10 to 10000000")
        if not MIB <= self.quota <= QUOTA_BYTES_MAX:
            raise UsageError(
                f"--quota-bytes {self.quota_bytes}: use {MIB} (1 MiB) to {QUOTA_BYTES_MAX} "
                "(48 GiB), 0 for the default, -1 for the most"
            )
        for name in ("scrub_interval_s", "corrupt_check_interval_s"):
            if not 0 <= getattr(self, name) <= _YEAR_S:
                raise UsageError(f"{flag_name(name)} {getattr(self, name)}: use 0 to {_YEAR_S}")
        _ = self.retention  # raises what is wrong

    def _check_state(self, members: dict[str, str]) -> None:
        state = self.initial_cluster_state
        if state not in {"new", "existing"}:
            raise UsageError(f"--initial-cluster-state '{state}': use new or existing")
        if state == "existing" and len(members) < 2:
            raise UsageError(
                "--initial-cluster-state existing needs --initial-cluster with this member and at "
                "least one that runs already"
            )

    def _check_address(self, attribute: str) -> None:
        flag = flag_name(attribute)
        value = getattr(self, attribute)
        if not value:
            return
        host, _ = parse_address(flag, value)
        if attribute.startswith("listen") and not self.allow_insecure and not is_loopback(host):
            raise UsageError(
                f"{flag} {value} can be reached from other machines and there is no TLS: "
                "use a loopback address, or add --allow-insecure on a network you trust"
            )

    def _check_times(self) -> None:
        for attribute in fields(self):
            if attribute.name.endswith(("_ms", "_ms_min", "_ms_max")):
                value = getattr(self, attribute.name)
                if not 1 <= value <= 3_600_000:
                    raise UsageError(f"{flag_name(attribute.name)} {value}: use 1 to 3600000")
        if self.watch_progress_interval_ms < 100:
            raise UsageError(
                f"--watch-progress-interval-ms {self.watch_progress_interval_ms}: use 100 or more"
            )
        rules = (
            ("election_timeout_ms_min", self.heartbeat_ms * 3, "three times --heartbeat-ms"),
            ("election_timeout_ms_max", self.election_timeout_ms_min, "--election-timeout-ms-min"),
            ("check_quorum_ms", self.heartbeat_ms * 3, "three times --heartbeat-ms"),
            ("dead_peer_ms", self.election_timeout_ms_max, "--election-timeout-ms-max"),
        )
        for attribute_name, least, what in rules:
            if getattr(self, attribute_name) <= least:
                raise UsageError(
                    f"{flag_name(attribute_name)} {getattr(self, attribute_name)} must be above "
                    f"{what} ({least})"
                )


def flag_name(attribute: str) -> str:
    """`data_dir` -> `--data-dir`."""
    return "--" + attribute.replace("_", "-")


def parse_address(flag: str, value: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[host]:port`.

    Raises:
        UsageError: it is not of that form.
    """
    if "://" in value:
        raise UsageError(f"{flag} {value}: give host:port without a scheme")
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit():
        raise UsageError(f"{flag} {value}: give host:port, such as 127.0.0.1:2379")
    if not 1 <= int(port) <= 65535:
        raise UsageError(f"{flag} {value}: a port is a number from 1 to 65535")
    return host.removeprefix("[").removesuffix("]"), int(port)


def parse_period(flag: str, value: str) -> float:
    """Seconds of `1h30m`, or of a plain number of hours, as etcd takes them.

    Raises:
        UsageError: it is not of that form.
    """
    if value.isascii() and value.isdigit():
        return int(value) * _UNIT_S["h"]
    if not value.isascii() or not _DURATION.fullmatch(value):
        raise UsageError(f"{flag} '{value}': give a duration such as 1h, 30m or 1h30m")
    return sum(float(number) * _UNIT_S[unit] for number, unit in _DURATION_PART.findall(value))


def parse_members(value: str) -> dict[str, str]:
    """Name -> address of `name=host:port,...`.

    Raises:
        UsageError: it is not of that form, or names something twice.
    """
    members: dict[str, str] = {}
    for part in value.split(","):
        name, equals, address = part.strip().partition("=")
        if not equals or not name:
            raise UsageError(f"--initial-cluster '{part}': give name=host:port,name=host:port,...")
        parse_address("--initial-cluster", address)
        if name in members or address in members.values():
            raise UsageError(f"--initial-cluster names '{part}' twice")
        members[name] = address
    return members


def is_loopback(host: str) -> bool:
    """True for localhost and loopback addresses."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
