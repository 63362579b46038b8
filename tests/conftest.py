"""Fixtures and rules of the whole test suite.

Tests that need data ask for the fixture `data_folder` or `fashion_mnist` and thereby get the
marker `data`. Without the data they are skipped with a reason; with GRADIRON_REQUIRE_DATA=1 a skip
of such a test, for whatever reason, is a failure.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest

DATA_FIXTURES = {"data_folder", "fashion_mnist"}

# The time of one example says nothing on a machine that runs other things too.
hypothesis.settings.register_profile("gradiron", deadline=None)
hypothesis.settings.load_profile("gradiron")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if DATA_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.data)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    required = os.environ.get("GRADIRON_REQUIRE_DATA") == "1"
    skipped = report.skipped and not hasattr(report, "wasxfail")
    if required and skipped and item.get_closest_marker("data") is not None:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"GRADIRON_REQUIRE_DATA=1, but the test was skipped: {reason}"
    return report


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with data sets: GRADIRON_DATA, or the user's own."""
    from gradiron import data

    folder = data.data_folder()
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist; set GRADIRON_DATA to the folder with the data sets")
    return folder


@pytest.fixture(scope="session")
def fashion_mnist(data_folder: Path) -> Path:
    """The folder to give as --data for Fashion-MNIST."""
    from gradiron import data
    from gradiron.errors import DataError

    try:
        data.load_idx_set("fashion", data_folder)
    except DataError as error:
        pytest.skip(str(error))
    return data_folder
