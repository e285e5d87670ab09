"""Options are checked against each other; every refusal names the option and what to do."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from kvserver.config import (
    QUOTA_BYTES_MAX,
    Config,
    Retention,
    flag_name,
    is_loopback,
    parse_address,
    parse_members,
)
from kvserver.errors import UsageError
from kvserver.storage.environment import MAP_BYTES


def changed(config: Config, given: Mapping[str, Any]) -> Config:
    return replace(config, **given)


THREE = "n1=127.0.0.1:2380,n2=127.0.0.1:22380,n3=127.0.0.1:32380"


def test_the_defaults_are_a_single_node_on_loopback() -> None:
    config = Config()
    config.check()
    assert config.members == {"default": "127.0.0.1:2380"}
    assert config.data_path == Path("default.kv")
    assert config.client_address == "127.0.0.1:2379"


def test_every_option_has_help() -> None:
    assert all(each.metadata["help"].strip().endswith((".", "]")) for each in fields(Config))


def test_what_is_given_wins_over_what_is_derived() -> None:
    config = Config(
        name="n2", data_dir="there", initial_cluster=THREE, advertise_client="kv.example:1"
    )
    config.check()
    assert config.data_path == Path("there")
    assert config.client_address == "kv.example:1"
    assert list(config.members) == ["n1", "n2", "n3"]


@pytest.mark.parametrize("name", ["", "a b", "a=b", "a,b", "a/b", "ä", "a\n", "a\t"])
def test_names(name: str) -> None:
    with pytest.raises(UsageError, match=r"(?s)--name .*use letters"):
        Config(name=name).check()


@pytest.mark.parametrize("name", ["n1", "node-1.rack_2", "N"])
def test_good_names(name: str) -> None:
    Config(name=name).check()


@pytest.mark.parametrize(
    "attribute", ["listen_peer", "listen_client", "listen_http", "advertise_client"]
)
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("http://127.0.0.1:1", "without a scheme"),
        ("127.0.0.1", "give host:port"),
        (":2379", "give host:port"),
        ("localhost:http", "give host:port"),
        ("localhost:²", "give host:port"),
        ("localhost:-1", "give host:port"),
        ("localhost:0", "from 1 to 65535"),
        ("localhost:65536", "from 1 to 65535"),
    ],
)
def test_addresses(attribute: str, value: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        changed(Config(), {attribute: value}).check()
    assert str(caught.value).startswith(flag_name(attribute))


def test_the_forms_of_an_address() -> None:
    assert parse_address("--x", "localhost:1") == ("localhost", 1)
    assert parse_address("--x", "[::1]:2379") == ("::1", 2379)
    assert parse_address("--x", "10.0.0.1:65535") == ("10.0.0.1", 65535)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.org"])
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("attribute", ["listen_peer", "listen_client", "listen_http"])
@pytest.mark.parametrize("value", ["0.0.0.0:1", "10.0.0.1:1", "[::]:1", "example.org:1"])
def test_no_door_without_tls_unless_told(attribute: str, value: str) -> None:
    config = changed(Config(advertise_client="10.0.0.1:2379"), {attribute: value})
    with pytest.raises(UsageError, match=f"{flag_name(attribute)} .*--allow-insecure"):
        config.check()
    replace(config, allow_insecure=True).check()


def test_what_is_only_told_may_be_anywhere() -> None:
    Config(advertise_client="10.0.0.1:2379").check()


@pytest.mark.parametrize("wildcard", ["0.0.0.0:2379", "[::]:2379"])
def test_clients_are_told_an_address_they_can_use(wildcard: str) -> None:
    config = Config(listen_client=wildcard, allow_insecure=True)
    with pytest.raises(UsageError, match=r"--listen-client .*--advertise-client host:port"):
        config.check()
    with pytest.raises(UsageError, match=r"--advertise-client .* all addresses"):
        replace(config, advertise_client=wildcard).check()
    replace(config, advertise_client="10.0.0.1:2379").check()


def test_two_doors_need_two_addresses() -> None:
    with pytest.raises(UsageError, match="--listen-peer and --listen-client are the same"):
        Config(listen_peer="127.0.0.1:2379").check()
    with pytest.raises(UsageError, match="--listen-client and --listen-http are the same"):
        Config(listen_http="127.0.0.1:2379").check()
    with pytest.raises(UsageError, match="--listen-peer and --listen-http are the same"):
        Config(listen_http="127.0.0.1:2380").check()


def test_http_is_off_unless_asked_for() -> None:
    assert Config().http_address is None
    config = Config(listen_http="[::1]:2381")
    config.check()
    assert config.http_address == ("::1", 2381)


def test_a_member_must_be_one_of_the_cluster() -> None:
    with pytest.raises(UsageError, match=r"--initial-cluster .*'n4' \(--name\).*n1, n2, n3"):
        Config(name="n4", initial_cluster=THREE).check()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("n1", "give name=host:port"),
        ("=127.0.0.1:1", "give name=host:port"),
        ("n1=127.0.0.1:1,", "give name=host:port"),
        ("n1=127.0.0.1", "give host:port"),
        ("n1=http://127.0.0.1:1", "without a scheme"),
        ("n1=127.0.0.1:1,n1=127.0.0.1:2", "twice"),
        ("n1=127.0.0.1:1,n2=127.0.0.1:1", "twice"),
    ],
)
def test_members(value: str, said: str) -> None:
    with pytest.raises(UsageError, match=f"--initial-cluster .*{said}"):
        Config(name="n1", initial_cluster=value).check()


def test_members_may_be_listed_with_spaces() -> None:
    assert parse_members("a=h:1, b=h:2") == {"a": "h:1", "b": "h:2"}


TIMES = [each.name for each in fields(Config) if "_ms" in each.name]


@pytest.mark.parametrize("attribute", TIMES)
@pytest.mark.parametrize("value", [0, -1, 3_600_001])
def test_times_have_bounds(attribute: str, value: int) -> None:
    with pytest.raises(UsageError, match=f"^{flag_name(attribute)} {value}: use 1 to 3600000"):
        changed(Config(), {attribute: value}).check()


@pytest.mark.parametrize(
    ("given", "least"),
    [
        ({"election_timeout_ms_min": 150}, "three times --heartbeat-ms (150)"),
        ({"election_timeout_ms_max": 300}, "--election-timeout-ms-min (300)"),
        ({"check_quorum_ms": 150}, "three times --heartbeat-ms (150)"),
        ({"dead_peer_ms": 600}, "--election-timeout-ms-max (600)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_times_are_ordered(given: dict[str, int], least: str) -> None:
    ((attribute, value),) = given.items()
    with pytest.raises(UsageError) as caught:
        changed(Config(), given).check()
    assert str(caught.value) == f"{flag_name(attribute)} {value} must be above {least}"
    changed(Config(), {attribute: value + 1}).check()


def test_log_levels() -> None:
    for level in ("debug", "info", "warning", "error"):
        Config(log_level=level).check()
    with pytest.raises(UsageError, match="--log-level 'loud': use debug"):
        Config(log_level="loud").check()


def test_what_a_member_starts_with() -> None:
    with pytest.raises(UsageError, match="--initial-cluster-state 'old': use new or existing"):
        Config(initial_cluster_state="old").check()
    alone = Config(initial_cluster_state="existing")
    with pytest.raises(UsageError, match="--initial-cluster-state existing needs"):
        alone.check()
    replace(alone, name="n3", initial_cluster=THREE).check()


@pytest.mark.parametrize("count", [9, 10_000_001])
def test_the_log_kept_has_bounds(count: int) -> None:
    with pytest.raises(UsageError, match=f"--log-keep-entries {count}: use 10 to 10000000"):
        Config(log_keep_entries=count).check()


def test_signs_of_progress_are_not_a_flood() -> None:
    with pytest.raises(UsageError, match="--watch-progress-interval-ms 99: use 100 or more"):
        Config(watch_progress_interval_ms=99).check()


@pytest.mark.parametrize(
    ("value", "period_s"),
    [("1h", 3600), ("30m", 1800), ("1h30m", 5400), ("90s", 90), ("1.5h", 5400), ("1000ms", 1),
     ("2", 7200), ("0", 0), ("off", 0)],
)  # fmt: skip
def test_what_is_kept_by_age(value: str, period_s: float) -> None:
    config = Config(auto_compaction_retention=value)
    config.check()
    assert config.retention == Retention(period_s=period_s)


def test_an_hour_is_kept_by_default() -> None:
    assert Config().retention == Retention(period_s=3600)


@pytest.mark.parametrize("value", ["", "h", "-1h", "1d", "1h ", "1h30", "ms", "\u0661h"])
def test_what_is_no_period(value: str) -> None:
    config = Config(auto_compaction_retention=value)
    with pytest.raises(UsageError, match=r"--auto-compaction-retention '.*give a duration such as"):
        config.check()


@pytest.mark.parametrize("value", ["999ms", "8761h", "8761"])
def test_periods_have_bounds(value: str) -> None:
    with pytest.raises(UsageError, match=f"--auto-compaction-retention {value}: use 1s to 8760h"):
        Config(auto_compaction_retention=value).check()


def test_what_is_kept_by_number() -> None:
    config = Config(auto_compaction_mode="revision", auto_compaction_retention="1000")
    config.check()
    assert config.retention == Retention(revisions=1000)
    assert replace(config, auto_compaction_retention="0").retention == Retention()
    with pytest.raises(UsageError, match="retention 1h: with --auto-compaction-mode revision give"):
        replace(config, auto_compaction_retention="1h").check()
    with pytest.raises(UsageError, match="--auto-compaction-mode 'size': use periodic or revision"):
        Config(auto_compaction_mode="size").check()


@pytest.mark.parametrize(
    ("given", "quota"),
    [(0, 2 << 30), (-1, QUOTA_BYTES_MAX), (1 << 20, 1 << 20), (48 << 30, 48 << 30)],
)
def test_the_quota(given: int, quota: int) -> None:
    config = Config(quota_bytes=given)
    config.check()
    assert config.quota == quota


@pytest.mark.parametrize("given", [1, (1 << 20) - 1, (48 << 30) + 1])
def test_a_quota_that_can_not_be_meant(given: int) -> None:
    with pytest.raises(UsageError, match=r"--quota-bytes .*1 MiB"):
        Config(quota_bytes=given).check()


def test_the_map_is_never_full_before_the_quota_is() -> None:
    assert QUOTA_BYTES_MAX <= MAP_BYTES * 3 // 4
