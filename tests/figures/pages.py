"""The blocks of the documentation that ``make figures`` writes: between two comments, one with a measure's name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"(<!-- make figures: (\w+) -->\n)(.*?)(<!-- end -->)", re.S)


def blocks() -> dict[str, Path]:
    """The page of each block, by the name of its measure."""
    return {m[2]: page for page in PAGES for m in BLOCK.finditer(page.read_text(encoding="utf-8"))}


def write(page: Path, measured: Mapping[str, Sequence[str]]) -> None:
    """Puts new lines into the blocks of a page. Those that ``measured`` lacks stay."""

    def filled(m: re.Match[str]) -> str:
        return m[1] + "".join(f"{line}\n" for line in measured[m[2]]) + m[4] if m[2] in measured else m[0]

    page.write_text(BLOCK.sub(filled, page.read_text(encoding="utf-8")), encoding="utf-8")


def without_blocks(text: str) -> str:
    """A page's text without what is measured."""
    return BLOCK.sub("", text)
