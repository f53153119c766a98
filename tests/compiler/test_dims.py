"""Dimension expressions against Python's integers: every rewrite must hold for every value that the ranges allow."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcweld.compiler.dims import (
    Call,
    Dim,
    Dyn,
    IntExpr,
    Sym,
    bounds,
    ceildiv,
    coefficient,
    divides_exactly,
    dynamic_atoms,
    evaluate,
    floordiv,
    free_symbols,
    is_multiple,
    is_nonneg,
    maximum,
    mentions,
    minimum,
    mod,
    parse,
    product,
    substitute,
    symbol,
    to_text,
    var,
)
from arcweld.compiler.dims.poly import MAX_DEGREE, MAX_SIZE, MAX_TERMS
from arcweld.compiler.errors import ModelError, UnsupportedError

N, S = symbol("N", 1), symbol("S", 2, 12, multiple_of=2)
# loop indices, below constant and symbolic extents
ROW, J, K = symbol("i", 0, 5), symbol("j", 0, N - 1), symbol("k", 0, N * S - 1)
LEAVES: tuple[Dim, ...] = (N, S, ROW, J, K)
DIVISORS: tuple[Dim, ...] = (1, 2, 3, 4, 6, 12, N, S, N * S, S + 1, 2 * N)


@dataclass(frozen=True)
class Tree:
    """An expression twice: as the module builds it, and as a function on plain integers."""

    dim: Dim
    run: Callable[[Mapping[str, int]], int]
    text: str


def leaf(d: Dim) -> Tree:
    return Tree(d, lambda env: d if isinstance(d, int) else evaluate(d, env), str(d))


def join(name: str, fn: Callable[[Dim, Dim], Dim], on_ints: Callable[[int, int], int], a: Tree, b: Tree) -> Tree:
    return Tree(fn(a.dim, b.dim), lambda env: on_ints(a.run(env), b.run(env)), f"{name}({a.text}, {b.text})")


RINGS = {
    "add": (lambda a, b: a + b, lambda a, b: a + b),
    "sub": (lambda a, b: a - b, lambda a, b: a - b),
    "mul": (lambda a, b: a * b, lambda a, b: a * b),
    "max": (maximum, max),
    "min": (minimum, min),
}
DIVISIONS = {
    "floordiv": (floordiv, lambda a, b: a // b),
    "mod": (mod, lambda a, b: a % b),
    "ceildiv": (ceildiv, lambda a, b: -(-a // b)),
}
NAMES = ["add", "add", "sub", "mul", "max", "min", "floordiv", "mod", "floordiv", "mod", "ceildiv"]


@st.composite
def trees(draw: st.DrawFn, depth: int = 4) -> Tree:
    """Sums, products, extremes, quotients and remainders of symbols, loop indices and small numbers, negative ones
    too.
    """
    if depth == 0 or draw(st.integers(0, 4)) == 0:
        return leaf(draw(st.one_of(st.sampled_from(LEAVES), st.integers(-7, 13))))
    name = draw(st.sampled_from(NAMES))
    a = draw(trees(depth=depth - 1))
    if name in DIVISIONS:
        return join(name, *DIVISIONS[name], a, leaf(draw(st.sampled_from(DIVISORS))))
    b = leaf(draw(st.integers(-4, 12))) if name == "mul" else draw(trees(depth=depth - 1))
    return join(name, *RINGS[name], a, b)


def samples(count: int = 60) -> list[dict[str, int]]:
    """Values inside the ranges, the corners more often than chance has it."""
    rng = random.Random(0)
    out = []
    for _ in range(count):
        n, s = rng.choice((1, 2, 3, 7)), rng.choice((2, 4, 12))
        pick = lambda hi: rng.choice((0, hi, rng.randint(0, hi)))
        out.append({"N": n, "S": s, "i": pick(5), "j": pick(n - 1), "k": pick(n * s - 1)})
    return out


SAMPLES = samples()


@given(trees())
@settings(max_examples=300)
def test_values_agree_with_integers(tree: Tree) -> None:
    for env in SAMPLES:
        assert evaluate(tree.dim, env) == tree.run(env), (tree.text, env)


@given(trees())
@settings(max_examples=300)
def test_ranges_are_sound(tree: Tree) -> None:
    values = [tree.run(env) for env in SAMPLES]
    lo, hi = bounds(tree.dim)
    assert lo is None or lo <= min(values), tree.text
    assert hi is None or hi >= max(values), tree.text
    if is_nonneg(tree.dim):
        assert min(values) >= 0, tree.text
    for shift in (1, 5):
        assert not is_nonneg(tree.dim - min(values) - shift), tree.text


@given(trees(), st.sampled_from([2, 3, 4, 8]))
@settings(max_examples=150)
def test_divisibility_is_sound(tree: Tree, n: int) -> None:
    if is_multiple(tree.dim, n):
        assert all(tree.run(env) % n == 0 for env in SAMPLES), tree.text


@given(trees(), st.sampled_from(DIVISORS))
@settings(max_examples=200)
def test_quotient_and_remainder_make_the_whole(tree: Tree, d: Dim) -> None:
    whole = floordiv(tree.dim, d) * d + mod(tree.dim, d)
    for env in SAMPLES:
        assert evaluate(whole, env) == tree.run(env), (tree.text, str(d), env)
    exact = divides_exactly(tree.dim, d)
    if exact is not None:
        assert all(evaluate(exact, env) * evaluate(d, env) == tree.run(env) for env in SAMPLES)


@given(trees(), trees(depth=2))
@settings(max_examples=200)
def test_substitution_is_evaluation(tree: Tree, other: Tree) -> None:
    """Replacing an index by an expression inside its range, then evaluating, is evaluating at that expression's
    value.
    """
    inside = minimum(maximum(other.dim, 0), 5)
    replaced = substitute(tree.dim, {atom_of(ROW): inside})
    for env in SAMPLES:
        at = min(max(other.run(env), 0), 5)
        assert evaluate(replaced, env) == tree.run({**env, "i": at}), (tree.text, other.text, env)


@given(trees())
@settings(max_examples=150)
def test_coefficients(tree: Tree) -> None:
    atom = atom_of(ROW)
    factor = coefficient(tree.dim, atom)
    if factor is None:
        return
    assert not mentions(factor, atom)
    for env in SAMPLES[:20]:
        at = [tree.run({**env, "i": v}) for v in range(6)]
        assert all(b - a == evaluate(factor, env) for a, b in itertools.pairwise(at)), tree.text


@given(trees())
@settings(max_examples=200)
def test_text_round_trip(tree: Tree) -> None:
    names = {s.name: var(s) for s in (atom_of(x) for x in LEAVES)}
    assert parse(to_text(tree.dim), names) == tree.dim
    again = parse(to_text(tree.dim))  # without the ranges it may be simplified less, never differently
    for env in SAMPLES[:20]:
        assert evaluate(again, env) == tree.run(env)


def atom_of(d: Dim) -> Sym:
    assert isinstance(d, IntExpr)
    atom = d.terms[0][0][0][0]
    assert isinstance(atom, Sym)
    return atom


# ------------------------------------------------------------------------------------- the identities kernels rely on


@pytest.mark.parametrize("shape", [(4, 6, 8), (3, 5, 7), (N, 6, 8), (N, S, 8), (2, S, N), (N * S, 3, N)])
def test_collapsing_loops_is_no_work(shape: tuple[Dim, ...]) -> None:
    """The coordinates of a flat index, made flat again, are that index."""
    flat = symbol("f", 0, product(shape) - 1)
    total: Dim = 0
    inner: Dim = 1
    for d in reversed(shape):
        total = total + mod(floordiv(flat, inner), d) * inner
        inner = inner * d
    assert total == flat


@pytest.mark.parametrize(("a", "b"), [(4, 6), (N, 6), (6, N), (N, S), (S, N * S)])
def test_coordinates_survive_flattening(a: Dim, b: Dim) -> None:
    """The flat index of two loops, taken apart again, gives the loops."""
    x, y = symbol("x", 0, a - 1), symbol("y", 0, b - 1)
    flat = x * b + y
    assert floordiv(flat, b) == x
    assert mod(flat, b) == y


def test_splitting_heads_leaves_no_division() -> None:
    h, d = symbol("h", 0, 11), symbol("d", 0, 63)
    flat = h * 64 + d
    assert (floordiv(flat, 768), mod(flat, 768)) == (0, flat)
    assert floordiv(symbol("s", 0, S - 1) * 768 + flat, 64) == symbol("s", 0, S - 1) * 12 + h


@pytest.mark.parametrize("d", [12, S])
def test_digits_have_one_form(d: Dim) -> None:
    m = symbol("m", 0, 2 * N * d * 8 - 1)
    assert floordiv(mod(m, 8 * d), 8) == mod(floordiv(m, 8), d)
    assert mod(mod(m, 8 * d), d) == mod(m, d)
    assert floordiv(floordiv(m, 8), d) == floordiv(m, 8 * d)
    assert mod(m, 8) + 8 * mod(floordiv(m, 8), 3) == mod(m, 24)


def test_lanes_of_a_vector_are_neighbours() -> None:
    """``4*q + lane`` inside rows of a multiple of 4 stays inside its row."""
    q, lane = symbol("q", 0), symbol("lane", 0, 3)
    assert floordiv(4 * q + lane, 12) == floordiv(q, 3)
    assert mod(4 * q + lane, 12) == 4 * mod(q, 3) + lane
    assert is_multiple(4 * mod(q, 3), 4)


def test_ranges_that_bounds_checks_need() -> None:
    o, t = symbol("o", 0, floordiv(S + 1, 2) - 1), symbol("t", 0, 2)
    assert is_nonneg(floordiv(S + 1, 2) - 1 - o)
    assert is_nonneg(S - 1 - 2 * symbol("p", 0, floordiv(S, 2) - 1) - 1)
    assert not is_nonneg(S - 1 - (2 * o + t))
    assert is_nonneg(maximum(N, S) - N)
    assert is_nonneg(N - minimum(N, S))
    assert is_nonneg(N - 1 - floordiv(symbol("c", 0, 6 * N - 1), 6))
    assert is_nonneg(N + 1 - floordiv(symbol("c", 0, 2 * (N + 2) - 1), 2))
    assert is_nonneg(3 * floordiv(S + 2, 3) - S)  # rounding up to a multiple never makes smaller
    assert not is_nonneg(3 * floordiv(S + 1, 3) - S)


def test_padding_to_a_whole_window_leaves_no_clamp() -> None:
    """What `SAME` padding of a strided window adds, and the window's extent."""
    padded = maximum(0, 2 * floordiv(S + 1, 2) - S) + S
    assert to_text(floordiv(padded, 2)) == f"floordiv({to_text(S)} + 1, 2)"


def test_padding_to_a_multiple_divides() -> None:
    """What frameworks write to pad a length to the next multiple, in its spellings."""
    for padding in (mod(-S, 4), mod(4 - mod(S, 4), 4), mod(-mod(S, 4), 4)):
        assert divides_exactly(S + padding, 4) == ceildiv(S, 4)
        assert is_nonneg(padding)
        assert is_nonneg(3 - padding)
    assert floordiv(-S, 4) == -ceildiv(S, 4)
    assert mod(-S, 4) + 4 * floordiv(-S, 4) == -S


def test_an_index_below_a_quotient_takes_no_remainder() -> None:
    """``o < S//2 + 1`` stays below that extent, and so does a column of rows that are ``N + 2`` long."""
    extent = floordiv(S + 1, 2) + 1
    o = symbol("o", 0, extent - 1)
    assert (floordiv(o, extent), mod(o, extent)) == (0, o)
    c = symbol("c", 0, 2 * N + 3)
    assert mod(floordiv(c, N + 2), 2) == floordiv(c, N + 2)


def test_an_axis_that_is_read_from_its_end_leaves_no_division() -> None:
    assert floordiv(-J - 1, N) == -1
    assert mod(-J - 1, N) == N - 1 - J
    assert floordiv(ROW * N + (N - 1 - J), N) == ROW
    assert isinstance(floordiv(-K - 1, N), IntExpr)  # K is below N * S, which is several times N


def test_a_remainder_of_negatives_is_not_taken_for_a_small_one() -> None:
    o = symbol("o", 0, 3 * N * S - 1)
    back = mod(3 * N * S - 1 - o, N * S)
    assert bounds(back)[0] == 0
    assert bounds(back)[1] is None
    env = {"N": 2, "S": 4, "o": 0}
    assert evaluate(floordiv(back, S), env) == 1


# --------------------------------------------------------------------------------------------------------- the rest


def test_constants_are_ints() -> None:
    assert N - N == 0
    assert isinstance(N - N + 3, int)
    assert floordiv(N * 6 + 6, N + 1) == 6
    assert product([]) == 1
    assert (N + 1) * (N - 1) == N * N - 1


def test_operators_from_both_sides() -> None:
    env = {"N": 3}
    for got, want in ((7 - N, 4), (7 * N, 21), (7 // N, 2), (7 % N, 1), (N // 2, 1), (N % 2, 1), (-N, -3), (1 + N, 4)):
        assert evaluate(got, env) == want
    assert repr(N + 1) == "IntExpr(N + 1)"


@pytest.mark.parametrize("fn", [floordiv, mod])
def test_division_by_zero_raises(fn: Callable[[Dim, Dim], Dim]) -> None:
    with pytest.raises(ZeroDivisionError):
        fn(N, 0)
    with pytest.raises(ZeroDivisionError):
        fn(3, 0)
    assert divides_exactly(N, 0) is None


def test_symbols_are_found_inside_calls() -> None:
    dyn = Dyn("g", "payload", 0, 9)
    e = floordiv(N * 3 + 1, 2) + mod(var(dyn) * 5 + 1, 7) * S
    assert free_symbols(e) == {atom_of(N), atom_of(S)}
    assert dynamic_atoms(e) == {dyn}
    assert mentions(e, atom_of(N))
    assert not mentions(e, atom_of(ROW))
    assert any(isinstance(a, Call) for m, _ in e.terms for a, _ in m)  # type: ignore[union-attr]
    with pytest.raises(KeyError):
        evaluate(e, {"N": 1})


@pytest.mark.parametrize(
    "text",
    ["", "1.5", "n**2", "__import__('os')", "f(n, 2)", "n // 0", "[n]", "n if n else 1", "(" * 200, "1 +" * 3000],
)
def test_senseless_text_is_refused(text: str) -> None:
    with pytest.raises(ModelError):
        parse(text)


def test_expressions_are_bounded() -> None:
    n, names = symbol("n"), [symbol(f"s{k}") for k in range(60)]
    with pytest.raises(UnsupportedError, match=f"product of more than {MAX_DEGREE} dimensions"):
        product([n] * (MAX_DEGREE + 1))
    total = sum(names, n * 0)
    with pytest.raises(UnsupportedError, match=f"sum of more than {MAX_TERMS} products"):
        product([total, total])

    def with_halves(count: int) -> Dim:
        d: Dim = n
        for k in range(count):
            d = d + floordiv(d + 1, k + 3)
        return d

    assert with_halves(4) != n
    with pytest.raises(UnsupportedError, match=f"more than {MAX_SIZE} parts"):
        with_halves(20)


def test_a_proof_that_takes_too_long_is_given_up() -> None:
    """Each of many quotients may be cleared first, at each step of the proof."""
    n = symbol("n", 1)
    e = sum((floordiv(n + k, 3 + k) * (k % 3 - 1) for k in range(60)), n * 0)
    started = time.process_time()
    assert not is_nonneg(e)
    assert time.process_time() - started < 5
