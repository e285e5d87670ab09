"""What a watch run means: cases, medians, what an event costs."""

from kvbench.flavor import KVSERVER
from kvbench.watch import Case, Plan, Run, run_line, summaries

NOBODY = Case(0, same_key=False)
OTHERS = Case(100, same_key=False)
SAME = Case(100, same_key=True)


def run(case: Case, cpu_per_put_s: float, repeat: int = 1, *, complete: bool = True) -> Run:
    return Run(
        flavor="kvserver", server_version="3.5.0", case=case, repeat=repeat, puts=10,
        cpu_s=10 * cpu_per_put_s, delivery_s=0.5, complete=complete,
    )  # fmt: skip


def test_the_cases_that_are_to_cost_the_same_come_first_and_side_by_side() -> None:
    plan = Plan([KVSERVER], [1, 100], puts=1000, repeats=1, nodes=1)
    assert [case.name for case in plan.cases] == [
        "nobody", "1 on other keys", "100 on other keys", "1 on the key", "100 on the key"
    ]  # fmt: skip


def test_many_watchers_of_the_key_get_few_puts_and_others_all() -> None:
    plan = Plan([KVSERVER], [100, 10_000], puts=2000, repeats=1, nodes=1)
    assert [plan.puts_of(case) for case in plan.cases] == [2000, 2000, 2000, 1000, 10]


def test_an_event_costs_what_a_put_costs_more_than_with_nobody_in_the_same_repeat() -> None:
    runs = [
        run(NOBODY, 0.001), run(OTHERS, 0.0011), run(SAME, 0.003),
        run(NOBODY, 0.002, 2), run(OTHERS, 0.0022, 2), run(SAME, 0.004, 2),
    ]  # fmt: skip
    nobody, others, same = summaries(runs)
    assert (nobody.ratio_to_nobody, nobody.cpu_per_event_s) == (1, None)
    assert round(others.ratio_to_nobody, 6) == 1.1
    assert same.cpu_per_event_s is not None
    assert round(same.cpu_per_event_s * 1e6) == 20


def test_an_event_that_did_not_come_is_told() -> None:
    assert "BUT" in run_line(run(SAME, 0.001, complete=False))
    assert "BUT" not in run_line(run(SAME, 0.001))
