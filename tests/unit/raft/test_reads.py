"""Read rounds: which echo answers which reads."""

from kvserver.raft.entry import MemberId
from kvserver.raft.reads import ReadRounds

ONE, TWO, THREE = MemberId(1), MemberId(2), MemberId(3)


def test_an_echo_confirms_its_round_and_earlier_ones_but_no_later_one() -> None:
    """Whoever answers a later read on an earlier echo may have been deposed in between."""
    rounds: ReadRounds[str] = ReadRounds()
    first, second, third = (rounds.begin([name], 1) for name in ("a", "b", "c"))
    rounds.echo(second, ONE, 1)
    assert rounds.take_ready(1) == ["a", "b"]
    assert rounds.open_round == third
    rounds.echo(first, TWO, 1)  # late, and of no use any more
    assert rounds.take_ready(1) == []
    rounds.echo(third, ONE, 1)
    assert rounds.take_ready(1) == ["c"]


def test_a_quorum_is_counted_in_members() -> None:
    rounds: ReadRounds[str] = ReadRounds()
    number = rounds.begin(["a"], 1)
    for _ in range(3):
        rounds.echo(number, ONE, 2)
        assert rounds.take_ready(1) == []
    rounds.echo(number, TWO, 2)
    assert rounds.take_ready(1) == ["a"]


def test_a_round_counts_its_own_echoes_only() -> None:
    rounds: ReadRounds[str] = ReadRounds()
    first, second = rounds.begin(["a"], 1), rounds.begin(["b"], 1)
    rounds.echo(first, ONE, 2)
    rounds.echo(second, TWO, 2)
    assert rounds.take_ready(1) == []
    rounds.echo(second, THREE, 2)
    assert rounds.take_ready(1) == ["a", "b"]


def test_an_echo_of_a_round_that_was_never_begun_confirms_nothing() -> None:
    rounds: ReadRounds[str] = ReadRounds()
    number = rounds.begin(["a"], 1)
    rounds.echo(number + 1, ONE, 1)
    assert rounds.take_ready(1) == []
    assert rounds.open_round == number


def test_a_confirmed_read_waits_until_its_index_is_applied() -> None:
    rounds: ReadRounds[str] = ReadRounds()
    rounds.begin(["a"], 4)
    number = rounds.begin(["b", "c"], 5)
    rounds.echo(number, ONE, 1)
    assert rounds.take_ready(3) == []
    assert rounds.take_ready(4) == ["a"]
    assert rounds.take_ready(4) == [], "each read is given out once"
    assert rounds.waiting
    assert rounds.take_ready(6) == ["b", "c"]
    assert not rounds.waiting


def test_reads_are_waiting_from_their_beginning_until_they_are_taken() -> None:
    rounds: ReadRounds[str] = ReadRounds()
    assert not rounds.waiting
    assert rounds.open_round is None
    number = rounds.begin(["a"], 1)
    assert rounds.waiting
    assert rounds.open_round == number
    rounds.echo(number, ONE, 1)
    assert rounds.waiting
    assert rounds.open_round is None, "nobody is asked again for a round that is confirmed"
    rounds.take_ready(1)
    assert not rounds.waiting


def test_a_lone_voter_confirms_its_rounds_by_itself() -> None:
    rounds: ReadRounds[str] = ReadRounds()
    rounds.begin(["a"], 1)
    rounds.begin(["b"], 2)
    rounds.confirm_all()
    assert rounds.open_round is None
    assert rounds.take_ready(1) == ["a"]
    assert rounds.take_ready(2) == ["b"]


def test_a_leadership_that_ends_gives_back_all_reads_once() -> None:
    rounds: ReadRounds[str] = ReadRounds()
    first = rounds.begin(["a"], 9)
    rounds.begin(["b", "c"], 9)
    rounds.echo(first, ONE, 1)
    assert sorted(rounds.take_all()) == ["a", "b", "c"]
    assert rounds.take_all() == []
    assert not rounds.waiting
    assert rounds.take_ready(9) == []
