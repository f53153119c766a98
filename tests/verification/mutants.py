"""Random edits of one token of rendered kernels: ``python tests/verification/mutants.py [--count 160] [--seed 7]``.

Each is tried on legal inputs; of those that change a result, it counts what a default build refuses. Nothing here knows
what verification looks for.
"""

from __future__ import annotations

import argparse
import random
import re
import secrets
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from injection import Subject, changes_a_result, refused, texts
from subjects import SUBJECTS

from arcweld.compiler.errors import CompileError

_TOKEN = re.compile(
    r"//[^\n]*|\"[^\"]*\"|[A-Za-z_]\w*|\d+\.?\d*f?"
    r"|&&|\|\||[<>=!+\-*/&|^]=|<<|>>|\+\+|--|[-+*/%<>&|^?:,]"
)
_SWAPS = {
    "+": "-", "-": "+", "*": "+", "/": "*", "%": "/", "<": "<=", ">": ">=", "<=": "<", ">=": ">", "==": "!=",
    "!=": "==", "&&": "||", "||": "&&", "+=": "-=", "-=": "+=", "++": "--", "&": "|", "|": "&", "^": "&",
    "min": "max", "max": "min", "max_nan": "min_nan", "min_nan": "max_nan", "true": "false", "false": "true",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mutant:
    """A kernel's text with the token ``before`` at ``position`` replaced by ``after``."""

    text: str
    position: int
    before: str
    after: str

    def mutated(self) -> str:
        """The edited text."""
        return self.text[: self.position] + self.after + self.text[self.position + len(self.before) :]

    def line(self) -> str:
        """The line of the token, before the edit."""
        start = self.text.rfind("\n", 0, self.position) + 1
        return self.text[start : self.text.find("\n", self.position)].strip()


def draw(rng: random.Random, text: str) -> Mutant:
    """A random mutant of a kernel's text: another operator, number, or variable of the same line."""
    tokens = [m for m in _TOKEN.finditer(text) if not m[0].startswith(("//", '"')) and m.start() > text.index("struct")]
    while True:
        m = rng.choice(tokens)
        after = _other(rng, m, text)
        if after is not None and after != m[0]:
            return Mutant(text, m.start(), m[0], after)


def _other(rng: random.Random, m: re.Match[str], text: str) -> str | None:
    word = m[0]
    if word in _SWAPS:
        return _SWAPS[word]
    if word.isdigit():
        return str(max(0, int(word) + rng.choice((-1, 1))))
    if not word[0].isalpha():
        return None
    line = text[text.rfind("\n", 0, m.start()) + 1 : text.find("\n", m.start())]
    names = [w for w in re.findall(r"\b[a-z]\w*\b", line) if w != word and len(w) <= 6]
    return rng.choice(names) if names else None


def measure(count: int, seed: str, subjects: list[Subject], tell: Callable[[str], None]) -> Counter[str]:
    """Draws ``count`` mutants that compile; returns how many were harmless, refused and accepted."""
    rng = random.Random(seed)
    kernels = [(s, t) for s in subjects for t in texts(s)]
    totals: Counter[str] = Counter()
    while totals.total() < count:
        subject, text = rng.choice(kernels)
        mutant = draw(rng, text)

        def edit(source: str, text: str = text, changed: str = mutant.mutated()) -> str:
            return changed if source == text else source

        try:
            effective = changes_a_result(subject, edit)
        except CompileError:
            continue
        why = refused(subject, edit) if effective else ""
        verdict = "harmless" if not effective else "refused" if why else "accepted"
        totals[verdict] += 1
        if verdict == "accepted":
            tell(f"accepted: {subject.name}: {mutant.before} -> {mutant.after} in: {mutant.line()}")
    return totals


def main() -> int:
    """The command line. Exit status 1 if less than 95 % of the effective mutants are refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=160)
    parser.add_argument("--seed", default=str(secrets.randbelow(10**9)))
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    totals = measure(asked.count, asked.seed, SUBJECTS, lambda line: print(line, flush=True))
    effective = totals["refused"] + totals["accepted"]
    share = totals["refused"] / max(effective, 1)
    print(f"{asked.count} mutants, {effective} change a result, {totals['refused']} refused ({100 * share:.0f} %)")
    return int(share < 0.95)


if __name__ == "__main__":
    sys.exit(main())
