"""Reads JUnit reports: exit 0 only when tests passed on real Mosquitto and NATS servers, none skipped.

tests/conftest.py marks such tests and turns their skips into failures; this catches tests never collected.
"""

import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable

BROKERS = ("mosquitto", "nats")


def count(reports: Iterable[str]) -> Counter[tuple[str, str]]:
    """How many test cases (broker, "passed" | "skipped" | "failed") the reports hold."""
    counts: Counter[tuple[str, str]] = Counter()
    for report in reports:
        for case in ET.parse(report).iter("testcase"):  # noqa: S314 - written by our own pytest
            outcome = "passed"
            if case.find("failure") is not None or case.find("error") is not None:
                outcome = "failed"
            elif case.find("skipped") is not None:
                outcome = "skipped"
            for each in case.iter("property"):
                if each.get("name") == "broker":
                    counts[str(each.get("value")), outcome] += 1
    return counts


def main(reports: list[str]) -> int:
    """Print one line per broker; return the exit status."""
    counts = count(reports)
    status = 0
    for broker in BROKERS:
        passed, other = counts[broker, "passed"], counts[broker, "skipped"] + counts[broker, "failed"]
        print(f"{broker}: {passed} tests passed, {other} skipped or failed")
        if not passed or other:
            status = 1
    if status:
        print("brokers_tested: the contract must pass on a real Mosquitto and NATS server", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
