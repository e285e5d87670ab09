"""Records golden bytes that are not recorded yet: `python tests/golden/make.py`.

Run it once with the build that first writes a form. What is recorded already is never changed: a
form that this build writes in another way than recorded ends the run.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))

from golden import data_dir, log, messages, rows
from golden.form import FOLDER, Form, load, text_of

FILES = {"rows.txt": rows.FORMS, "log.txt": log.FORMS, "messages.txt": messages.FORMS}


def record(file: str, forms: tuple[Form, ...]) -> None:
    path = FOLDER / file
    path.touch()
    recorded = load(file)
    for form in forms:
        if form.name not in recorded:
            with path.open("a") as text:
                text.write(text_of(form) + "\n")
            print(f"{file}: {form.name}")
        elif form.make is not None and dict(form.make()) != recorded[form.name]:
            sys.exit(f"{file}: '{form.name}' is written otherwise now; that needs another entry")


def main() -> None:
    for file, forms in FILES.items():
        record(file, forms)
    target = FOLDER / data_dir.NEWEST
    if not target.exists():
        with TemporaryDirectory() as folder:
            data_dir.make(Path(folder), target)
        print(f"{target.name}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
