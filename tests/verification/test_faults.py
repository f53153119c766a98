"""A default build refuses kernels with faults: of those that change a result for some legal input, at least 95 %."""

from __future__ import annotations

from functools import cache

import pytest
from faults import applied
from injection import Subject, changes_a_result, refused, texts
from subjects import SUBJECTS

from arcweld.compiler.errors import CompileError

LEAST_FAULTS, LEAST_SHARE = 60, 0.95
pytestmark = pytest.mark.slow


@cache
def outcomes(subject: Subject) -> list[tuple[str, bool, str]]:
    """(fault, whether it changes a result, why the build is then refused) of every fault of a subject's kernels."""
    found = []
    for text in texts(subject):
        for fault, place, changed in applied(text):

            def edit(source: str, text: str = text, changed: str = changed) -> str:
                return changed if source == text else source

            try:
                effective = changes_a_result(subject, edit)
            except CompileError:
                continue
            why = refused(subject, edit) if effective else ""
            found.append((f"{subject.name}: {fault.kind}, {fault.name}: {place}", effective, why))
    return found


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda s: s.name)
def test_faults_change_results(subject: Subject) -> None:
    assert any(changes for _, changes, _ in outcomes(subject))


def test_faults_are_refused() -> None:
    found = [o for s in SUBJECTS for o in outcomes(s)]
    effective = [(name, why) for name, changes, why in found if changes]
    accepted = [name for name, why in effective if not why]
    share = 1 - len(accepted) / len(effective)
    assert len(effective) >= LEAST_FAULTS
    assert share >= LEAST_SHARE, f"{len(accepted)} of {len(effective)} accepted:\n" + "\n".join(accepted)
