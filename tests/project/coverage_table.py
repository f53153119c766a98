"""Prints coverage by folder: ``python tests/project/coverage_table.py REPORT`` (the JSON of ``coverage json``)."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

COUNTS = ("covered_lines", "num_statements", "covered_branches", "num_branches")


def by_folder(report: dict[str, Any]) -> dict[str, Counter[str]]:
    """The counts of every top-level folder, and their total."""
    table: dict[str, Counter[str]] = {}
    for name, file in report["files"].items():
        for key in (Path(name).parts[0], "total"):
            table.setdefault(key, Counter()).update({c: file["summary"][c] for c in COUNTS})
    return dict(sorted(table.items(), key=lambda item: (item[0] == "total", item[0])))


def lines(table: dict[str, Counter[str]]) -> list[str]:
    """A Markdown table."""
    rows = ["| folder | lines | covered | branches | covered |", "|---|---|---|---|---|"]
    for folder, c in table.items():
        rows.append(
            f"| {folder} | {c['num_statements']} | {share(c['covered_lines'], c['num_statements'])}"
            f" | {c['num_branches']} | {share(c['covered_branches'], c['num_branches'])} |"
        )
    return rows


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


if __name__ == "__main__":
    print("\n".join(lines(by_folder(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))))
