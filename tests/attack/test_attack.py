"""A short attack with a fixed seed, and that the attack finds what it looks for. ``make attack`` runs a long one."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import strike
from alter import altered, consistent, read_members, written

from arcweld.compiler.errors import EngineFileError
from arcweld.runtime.engine_file import parse_engine


@pytest.mark.slow
def test_a_short_attack_finds_nothing(tmp_path: Path) -> None:
    """In a process of its own: a child that is forked from one with threads may wait for ever."""
    command = [sys.executable, str(Path(__file__).parent), "--count", "250", "--seed", "1", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return strike.originals(tmp_path_factory.mktemp("engines"))[0]


def test_altered_files_get_past_the_hashes(original: bytes) -> None:
    """Otherwise the attack would only ever meet the first check."""
    rng, ends = random.Random(0), list[str]()
    for _ in range(200):
        try:
            parse_engine(memoryview(altered(original, rng)))
            ends.append("read")
        except EngineFileError as error:
            ends.append(error.message)
    assert ends.count("read") > 30
    assert len(set(ends)) > 30
    assert sum("hash" in e for e in ends) < 30


def test_an_unaltered_file_stays_one(original: bytes) -> None:
    again = written(consistent(read_members(original)))
    assert parse_engine(memoryview(again)).program == parse_engine(memoryview(original)).program


def fail(data: bytes, folder: Path) -> str:
    raise KeyError("untyped")


def crash(data: bytes, folder: Path) -> str:
    os.abort()


def hang(data: bytes, folder: Path) -> str:
    while True:
        pass


def swell(data: bytes, folder: Path) -> str:
    return str(len(bytearray(strike.MEMORY)))


@pytest.mark.parametrize(
    ("how", "found"),
    [(fail, "KeyError: 'untyped'"), (crash, "signal 6"), (hang, "more than 1 s"), (swell, "more than 4 GiB")],
    ids=lambda x: x.__name__ if callable(x) else "",
)
def test_findings(how: Callable[[bytes, Path], str], found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strike, "open_every_way", how)
    monkeypatch.setattr(strike, "SECONDS", 1 if how is hang else 20)
    assert found in strike.strike(b"")
