"""What a load run means: h2load's report, the check against the revision, medians and ratios."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import cast

import pytest

from kvbench.h2load import Amount, Answers, H2LoadError, arguments, frame, parse
from kvbench.load import Run, ratios, settled_revision, summaries
from kvbench.report import distribution
from kvclient import AsyncClient, RangeResult
from kvpb import rpc_pb2

REPORT = """\
Main benchmark duration is over for thread #0. Stopping all clients.

finished in 2.01s, 7679.50 req/s, 710.89KB/s
requests: 15359 total, 15423 started, 15359 done, 15359 succeeded, 1 failed, 0 errored, 0 timeout
status codes: 15359 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 1.39MB (1456112) total, 90.62KB (92792) headers (savings 95.42%), 404.98KB (414693) data
"""
LOG = "1795425620540350\t200\t3178\n1795425620540351\t500\t9\n1795425620540352\t200\t1000\n"


def test_the_report_of_h2load() -> None:
    found = parse(REPORT, LOG)
    assert found == Answers(15423, 15359, 1, 414693, 2.01, (0.003178, 0.001))


def test_a_report_in_milliseconds() -> None:
    assert parse(REPORT.replace("2.01s", "503.86ms"), "").seconds == pytest.approx(0.50386)


def test_a_report_of_another_shape() -> None:
    with pytest.raises(H2LoadError, match="something else"):
        parse("finished in 1s", LOG)


def test_the_frame_is_a_grpc_message() -> None:
    put = rpc_pb2.PutRequest(key=b"key", value="Übung".encode())
    body = frame(put)
    assert body[0] == 0
    assert int.from_bytes(body[1:5], "big") == len(body) - 5
    assert rpc_pb2.PutRequest.FromString(body[5:]) == put


@pytest.mark.parametrize(
    ("amount", "length"),
    [(Amount(64, 2.5), ("--duration", "2500ms")), (Amount(64, 2.5, 100), ("--requests", "100"))],
)
def test_requests_win_over_seconds(amount: Amount, length: tuple[str, str]) -> None:
    found = arguments(amount, "http://127.0.0.1:1/a.B/C", Path("body"), Path("log"))
    assert length in pairwise(found)
    assert ("--clients", "64") in pairwise(found)
    assert found[-1] == "http://127.0.0.1:1/a.B/C"


def run(flavor: str = "kvserver", clients: int = 1, per_second: int = 100) -> Run:
    return Run(
        "put", flavor, "1", clients, 1, started=per_second, succeeded=per_second, failed=0,
        proven=per_second, seconds=1.0, latency=distribution([0.001, 0.002, 0.003]),
    )  # fmt: skip


def test_every_answer_must_be_a_put_that_happened() -> None:
    good = run()
    assert good.honest
    assert replace(good, started=105, proven=103).honest  # answers cut off at the end
    assert not replace(good, proven=99).honest  # an error answered with HTTP status 200
    assert not replace(good, proven=101).honest  # somebody else wrote
    assert not replace(good, failed=1).honest


def test_medians_over_repeats_and_their_ratio() -> None:
    runs = [run(per_second=each) for each in (100, 300, 200)]
    runs += [run("etcd", per_second=each) for each in (400, 100, 500)]
    runs += [run(clients=64)]
    found = summaries(runs)
    assert [(each.flavor, each.clients, each.per_second) for each in found] == [
        ("kvserver", 1, 200), ("etcd", 1, 400), ("kvserver", 64, 100),
    ]  # fmt: skip
    assert found[0].latency_median_s == 0.002
    assert found[0].latency_p99_s == 0.003
    assert ratios(found, "kvserver", "etcd") == {1: 0.5}


class Client:
    """A store whose revision still moves."""

    def __init__(self, *revisions: int) -> None:
        self.revisions = list(revisions)

    async def range(self, key: str, *, count_only: bool) -> RangeResult:
        assert count_only
        return RangeResult(self.revisions.pop(0), (), 1, more=False)


async def test_puts_cut_off_at_the_end_of_a_run_do_not_count_for_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kvbench.load.SETTLE_S", 0.0)
    client = Client(5, 7, 8, 8, 99)
    assert await settled_revision(cast("AsyncClient", client)) == 8
    assert client.revisions == [99]
