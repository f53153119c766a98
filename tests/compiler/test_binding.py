"""Symbols found from sizes, for dimensions and for an engine's compiled expressions alike."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcweld.compiler.dims import parse
from arcweld.compiler.dims.binding import DimFunction, Function, linear, solve
from arcweld.runtime.expressions import Expression

Form = Callable[[str], Function]


def dim(text: str) -> Function:
    """The text as a dimension."""
    return DimFunction(parse(text))


FORMS = pytest.mark.parametrize("form", [dim, Expression], ids=["dimension", "expression"])


@FORMS
@given(n=st.integers(0, 1 << 20), k=st.integers(0, 1 << 20), a=st.integers(1, 9), b=st.integers(-9, 9))
def test_a_chain_of_linear_equations_is_solved_in_any_order(form: Form, n: int, k: int, a: int, b: int) -> None:
    for turn in (1, -1):
        env: dict[str, int] = {}
        solve([(form(f"n*k + {a}*k"), n * k + a * k), (form(f"{a}*n + {b}"), a * n + b)][::turn], env)
        assert env == {"n": n, "k": k}


@FORMS
@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2*n + 1", 6), ("n + 5", 3), ("n*n", 9), ("n*k", 6), ("mod(n, 4)", 2), ("floordiv(n, 2)", 4), ("max(n, 9)", 9),
        ("min(n, 9)", 9), ("floordiv(12, n)", 4), ("floordiv(8, n - 1)", 4), ("7", 7),
    ],
)  # fmt: skip
def test_what_does_not_determine_a_symbol_adds_none(form: Form, text: str, size: int) -> None:
    env: dict[str, int] = {}
    solve([(form(text), size)], env)
    assert env == {}


@FORMS
def test_a_remainder_waits_for_the_equation_that_tells(form: Form) -> None:
    env: dict[str, int] = {}
    solve([(form("mod(n, 2)"), 1), (form("2*n"), 14)], env)
    assert env == {"n": 7}


@FORMS
def test_given_symbols_stay(form: Form) -> None:
    env = {"n": 3}
    solve([(form("n"), 4), (form("n*k"), 12)], env)
    assert env == {"n": 3, "k": 4}


@FORMS
def test_lines(form: Form) -> None:
    assert linear(form("3*n + 2"), "n", {}) == (2, 3)
    assert linear(form("k*n - 2*k"), "n", {"k": 4}) == (-8, 4)
    assert linear(form("k*n"), "n", {"k": 0}) is None
    assert linear(form("n*n"), "n", {}) is None
