"""What holds for every test: Ctrl-C reaches the processes that tests start, and the files that take longest begin first."""

from __future__ import annotations

import signal

import pytest

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # a background job ignores SIGINT, and its children would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A file is one worker's work: a long one that began last would keep the others waiting.
LONGEST = (
    "tests/aggregator_client/test_demo.py",
    "tests/anonymizer/test_faces.py",
    "tests/aggregator_client/test_split.py",
    "tests/aggregator_client/secagg/test_federation.py",
    "tests/aggregator_client/test_federation.py",
    "tests/interop/test_console_browser.py",
    "tests/trainer/test_job.py",
    "tests/aggregator_client/test_dashboard.py",
    "tests/dicom_node/receiver/test_hostile_peers.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        file = item.nodeid.partition("::")[0]
        return LONGEST.index(file) if file in LONGEST else len(LONGEST)

    items.sort(key=rank)
