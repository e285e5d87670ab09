"""Generate the Python code of the .proto files, or check that the committed code is fresh.

Usage: python protos/generate.py [--check]
"""

import argparse
import filecmp
import importlib.resources
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parent
PACKAGE = ROOT / "kvpb"


def generate(target: Path) -> None:
    """Write code and stubs for every .proto file of the package below `target`."""
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    plugins = [
        f"--plugin={name}={Path(sys.executable).with_name(name)}"
        for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
    ]
    sources = sorted(str(path) for path in PACKAGE.glob("*.proto"))
    for source in sources:
        services = "\nservice " in Path(source).read_text()
        outputs = [f"--python_out={target}", f"--mypy_out=quiet:{target}"]
        if services:
            outputs += [f"--grpc_python_out={target}", f"--mypy_grpc_out=quiet:{target}"]
        code = protoc.main(["protoc", f"-I{ROOT}", f"-I{well_known}", *plugins, *outputs, source])
        if code != 0:
            sys.exit(f"protoc failed on {source}")


def stale_files(fresh: Path) -> list[str]:
    """Names of generated files that differ from those in `fresh`, missing ones included."""
    names = {path.name for folder in (PACKAGE, fresh) for path in folder.glob("*_pb2*")}
    _, mismatch, errors = filecmp.cmpfiles(PACKAGE, fresh, sorted(names), shallow=False)
    return mismatch + errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare, change nothing")
    if not parser.parse_args().check:
        generate(ROOT)
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        stale = stale_files(Path(folder) / "kvpb")
    if stale:
        sys.exit(f"out of date: {', '.join(stale)}; run `make generate`")


if __name__ == "__main__":
    main()
