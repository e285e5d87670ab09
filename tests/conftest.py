"""Options of the test suite."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seeds", type=int, default=25, help="seeds of the simulation to run, for each size"
    )
    parser.addoption("--damages", type=int, default=5, help="damages of real nodes to try")
    parser.addoption("--damage-seed", type=int, default=1, help="which ones")
