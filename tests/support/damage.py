"""Damages of a data directory: of every file, every kind of page and every field. Drawn by a seed.

    damages = Damages(data_dir, older)
    damages.draw(Random("17")).apply(copy_of_data_dir)

Some damages are harmless, since they hit what nobody reads: the judge has to tell.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from support.damage_file import Change, Drawn, FileDamages
from support.damage_lmdb import LmdbDamages
from support.damage_lmdb_lies import LmdbLies
from support.damage_log import LogDamages

TRIES = 200


@dataclass(frozen=True)
class Damage:
    """What happens to one file."""

    kind: str
    file: str
    """Relative to the data directory."""
    description: str
    change: Change
    """Content of the file -> what it is afterwards, None: it is gone."""

    def __str__(self) -> str:
        return f"{self.kind}: {self.description} ({self.file})"

    def apply(self, data_dir: Path) -> None:
        """Do it; the node must not run."""
        path = data_dir / self.file
        before = path.read_bytes()
        after = self.change(before)
        assert after != before, f"nothing is changed by {self}"
        if after is None:
            path.unlink()
        else:
            path.write_bytes(after)


class Damages:
    """All damages that a closed data directory may get."""

    def __init__(self, data_dir: Path, older: Sequence[Path] = ()) -> None:
        """Read what is there.

        Args:
            data_dir: of a node that is stopped.
            older: earlier copies of the file of its state, for damage that brings back what was.
        """
        environment = data_dir / (data_dir / "CURRENT").read_text().strip()
        (log,) = environment.glob("journal-*")
        state = environment / "data.mdb"
        content = state.read_bytes()
        copies = [path.read_bytes() for path in older]
        segments = {path.name: path.read_bytes() for path in sorted(log.iterdir())}
        self._contents: dict[str, bytes] = {}
        self._kinds: dict[str, Callable[[Random], tuple[str, Drawn] | None]] = {}

        def add(kinds: Iterable[tuple[str, Callable[[Random], Drawn | None]]], path: Path) -> None:
            name = str(path.relative_to(data_dir))
            self._contents[name] = path.read_bytes()
            for kind, draw in kinds:
                self._kinds[kind] = _in_file(name, draw)

        add(LmdbDamages(content, copies).kinds(), state)
        add(LmdbLies(content, copies).kinds(), state)
        add(FileDamages("data.mdb", content).kinds(), state)
        for file in (data_dir / "CURRENT", environment / "lock.mdb"):
            add(FileDamages(file.name, file.read_bytes()).kinds(), file)
        self._add_log(LogDamages(log.name, segments), log.relative_to(data_dir), segments)

    def _add_log(self, log: LogDamages, folder: Path, segments: dict[str, bytes]) -> None:
        for name, content in segments.items():
            self._contents[str(folder / name)] = content

        def in_log(
            draw: Callable[[Random], tuple[str, Drawn] | None], rng: Random
        ) -> tuple[str, Drawn] | None:
            found = draw(rng)
            return None if found is None else (str(folder / found[0]), found[1])

        for kind, draw in log.kinds():
            self._kinds[kind] = lambda rng, draw=draw: in_log(draw, rng)  # type: ignore[misc]

    @property
    def kinds(self) -> list[str]:
        """Names of all kinds, in a fixed order."""
        return list(self._kinds)

    def draw(self, rng: Random, kind: str | None = None) -> Damage:
        """A damage of this kind, or of any; one that changes the file."""
        kind = kind or rng.choice(self.kinds)
        for _ in range(TRIES):
            drawn = self._kinds[kind](rng)
            if drawn is None:
                continue
            file, (description, change) = drawn
            if change(self._contents[file]) != self._contents[file]:
                return Damage(kind, file, description, change)
        raise LookupError(f"this directory can't get any damage of the kind '{kind}'")


def _in_file(
    name: str, draw: Callable[[Random], Drawn | None]
) -> Callable[[Random], tuple[str, Drawn] | None]:
    def drawn(rng: Random) -> tuple[str, Drawn] | None:
        found = draw(rng)
        return None if found is None else (name, found)

    return drawn


def draw(rng: Random, data_dir: Path, older: Sequence[Path] = ()) -> Damage:
    """One damage of a closed data directory."""
    return Damages(data_dir, older).draw(rng)
