"""The graph that chooses tokens from rows of logits on the device, so that a few numbers of a row reach the host.

    logits   [R, vocabulary]  of a step
    rows     i64[S]           the rows of which tokens are wanted
    places   i64[S, P, 2]     the row, from 0 to S - 1, and the token of each logit that is changed; -1 and -1: of none
    changes  f64[S, P, 3]     by what: a divisor (of positive logits; negative ones are multiplied by it), what is
                              subtracted, and then what is added
    settings f64[S, 5]        temperature, top_k (0: all), top_p (2: all), min_p (-1: all), the random number in [0, 1)

    tokens   i64[S]           the chosen tokens; -1: undecided
    logprobs f64[S]           their log probabilities, before changes and temperature
    likely   i64[S, K]        the most likely tokens after the changes, the most likely one first
    likely_logprobs f64[S, K] their log probabilities, before changes and temperature

It gives the token that ``runtime/llm/sampling.py`` gives, or says that it is undecided: where the answer lies beyond
the K most likely tokens, where rounding could alter it, and where logits are not finite. All is computed in f64. Sums
of a whole row are in another order than the host's, and exponentials may be rounded otherwise; ``MARGIN`` is far more
than both can do.
"""

from __future__ import annotations

from arcweld.compiler import dims
from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph, Rewriter, TensorType, Value
from arcweld.compiler.ops.emit import Emitter

INPUTS = ("logits", "rows", "places", "changes", "settings")
OUTPUTS = ("tokens", "logprobs", "likely", "likely_logprobs")
TEMPERATURE, TOP_K, TOP_P, MIN_P, NUMBER = range(5)  # columns of ``settings``
# Of selected tokens few more cost nothing: a row is read once for any number of them. With so many, most nuclei
# (top_p) and all usual top_k and logprobs lie within, and one block of 256 threads sorts them.
CANDIDATES = 256
SAMPLED = "sampled"  # the name of the symbol S
_CHANGED_BYTES = 1 << 28  # the changed logits of all rows of a call are kept, 8 bytes each
MOST_CHANGES = 4096  # of a row
MARGIN = 1e-9  # relative to all probability: draws so close to a border are undecided
NEAR = 1e-12  # relative: changed logits so close to each other have an order that rounding decides


def candidates(vocabulary: int) -> int:
    """How many of the most likely tokens are looked at."""
    return min(CANDIDATES, vocabulary)


def most_rows(vocabulary: int, rows: int) -> int:
    """How many rows a call takes, of a step with at most ``rows``."""
    return max(1, min(rows, _CHANGED_BYTES // (8 * vocabulary)))


def sampler_graph(vocabulary: int, dtype: DType, rows: int) -> Graph:
    """The graph for logits of ``dtype``, of a step with at most ``rows`` of them."""
    r, s = dims.symbol("rows", 1, rows), dims.symbol(SAMPLED, 1, most_rows(vocabulary, rows))
    p = dims.symbol("changed", 1, MOST_CHANGES)
    shapes: tuple[tuple[DType, tuple[Dim, ...]], ...] = (
        (dtype, (r, vocabulary)), (DType.I64, (s,)), (DType.I64, (s, p, 2)), (DType.F64, (s, p, 3)), (DType.F64, (s, 5))
    )  # fmt: skip
    inputs = tuple(Value(name, TensorType(t, shape)) for name, (t, shape) in zip(INPUTS, shapes))
    rw = Rewriter(Graph("sampler", inputs, (), ()))
    sampler = _Sampler(rw, inputs)
    outputs = sampler.outputs()
    return Graph("sampler", inputs, outputs, tuple(rw.nodes), dict(rw.weights), output_labels=OUTPUTS)


class _Sampler(Emitter):
    """Emits the graph."""

    def __init__(self, rw: Rewriter, inputs: tuple[Value, ...]) -> None:
        super().__init__(rw, ("sampler",))
        self.logits, self.rows, self.places, self.changes, self.settings = inputs
        self.count = candidates(int(self.logits.shape[1]))  # type: ignore[arg-type]
        self.whole = self.count == self.logits.shape[1]  # no token is beyond the candidates
        self.sampled = self.rows.shape[0]

    def number(self, value: float) -> Value:
        return self.const(value, DType.F64)

    def setting(self, column: int) -> Value:
        """A column of ``settings``, f64[S, 1]."""
        return self.slice(self.settings, 1, column, 1)

    def total(self, x: Value) -> Value:
        """The sum of each row, [S, 1]."""
        return self.emit("ReduceSum", x, axes=(1,), keepdims=1)

    def any(self, x: Value) -> Value:
        """Whether any element of each row is true, [S, 1]."""
        return self.emit("Greater", self.total(self.cast(x, DType.F64)), self.number(0))

    def finite(self, x: Value) -> Value:
        """Whether elements are neither NaN nor infinite."""
        return self.emit("Not", self.emit("Or", self.emit("IsNaN", x), self.emit("IsInf", x)))

    def outputs(self) -> tuple[Value, ...]:
        """The values of ``OUTPUTS``."""
        e = self.emit
        raw = e("Gather", self.logits, self.rows, axis=0)
        wide = self.cast(raw, DType.F64)
        mass = e("ReduceLogSumExp", wide, axes=(1,), keepdims=1)
        changed = self.changed(wide)
        x = e("TopK", changed, k=self.count, axis=1)
        ids = self.rw.nodes[-1].outputs[1]
        place, decided = self.drawn(changed, x)
        token = e("GatherElements", ids, place, axis=1)
        logprob = e("Sub", e("GatherElements", wide, token, axis=1), mass)
        token = e("Where", e("And", decided, self.finite(mass)), token, self.const(-1, DType.I64))
        likely = e("Sub", e("GatherElements", wide, ids, axis=1), mass)
        return self.reshape(token, (self.sampled,)), self.reshape(logprob, (self.sampled,)), ids, likely

    def changed(self, wide: Value) -> Value:
        """The logits after penalties, biases and forbidden tokens, f64[S, vocabulary]."""
        e, shape = self.emit, self.places.shape[:2]
        tokens = self.reshape(self.slice(self.places, 2, 1, 1), shape)
        divisor, less, more = (self.reshape(self.slice(self.changes, 2, k, 1), shape) for k in range(3))
        x = e("GatherElements", wide, tokens, axis=1)
        x = e("Where", e("Greater", x, self.number(0)), e("Div", x, divisor), e("Mul", x, divisor))
        x = e("Add", e("Sub", x, less), more)
        return e("ScatterND", wide, self.places, x, padding=1)

    def drawn(self, changed: Value, x: Value) -> tuple[Value, Value]:
        """The place among the candidates ``x`` f64[S, K] of the token that is drawn, and whether it is certain."""
        e = self.emit
        temperature, top_k, top_p, min_p, number = (self.setting(k) for k in range(5))
        first = self.slice(x, 1, 0, 1)
        weight = e("Exp", e("Div", e("Sub", x, first), temperature))
        limited = e("Greater", top_k, self.number(0))
        order = self.cast(e("Range", start=0, step=1, length=self.count, dtype=DType.I64), DType.F64)
        within = e("Or", e("Not", limited), e("Less", order, top_k))
        weight = e("Where", within, weight, self.number(0))
        every = self.total(e("Exp", e("Div", e("Sub", changed, first), temperature)))
        mass = e("Where", limited, self.total(weight), every)
        slack = e("Mul", mass, self.number(MARGIN))
        sums = e("CumSum", weight, axis=1)
        before, border = e("Sub", sums, weight), e("Mul", top_p, mass)
        kept = e("And", within, e("And", e("Not", e("Less", weight, min_p)), e("Less", before, border)))
        near = e("LessOrEqual", e("Abs", e("Sub", before, border)), slack)
        near = e("And", within, e("Or", near, self.near_min_p(weight, min_p)))
        unsure = self.any(e("Or", near, e("And", kept, self.near_next(x))))
        held, inside = self.total(self.cast(kept, DType.F64)), self.total(e("Where", kept, weight, self.number(0)))
        least, most, end = inside, inside, held
        if not self.whole:
            # where the truncation ends beyond the candidates, the probability that it keeps is between two bounds
            closed = e("Or", limited, e("Less", held, self.number(self.count)))
            known = e("Where", e("Greater", min_p, self.number(0)), self.total(weight), e("Min", mass, border))
            least = e("Where", closed, inside, known)
            last = self.slice(weight, 1, self.count - 1, 1)
            most = e("Where", closed, inside, e("Min", mass, e("Add", border, last)))
            end = e("Where", closed, held, self.number(self.count - 1))
        low, high = e("Sub", e("Mul", number, least), slack), e("Add", e("Mul", number, most), slack)
        at, at_most = (self.total(self.cast(e("LessOrEqual", sums, v), DType.F64)) for v in (low, high))
        certain = e("And", e("And", e("Equal", at, at_most), e("Less", at, end)), e("Not", unsure))
        certain = e("And", certain, self.finite(mass))
        return self.cast(e("Min", at, self.number(self.count - 1)), DType.I64), certain

    def near_min_p(self, weight: Value, min_p: Value) -> Value:
        """Which weights rounding could put on the other side of ``min_p``. Those that equal the greatest stay equal."""
        e = self.emit
        near = e("LessOrEqual", e("Abs", e("Sub", weight, min_p)), e("Mul", e("Abs", min_p), self.number(MARGIN)))
        return e("And", near, e("Less", weight, self.number(1)))

    def near_next(self, x: Value) -> Value:
        """Which candidates are so close to the next one that rounding decides their order. Equal ones have one."""
        e = self.emit
        if self.count == 1:
            return e("Less", x, x)
        gap = e("Sub", self.slice(x, 1, 0, self.count - 1), self.slice(x, 1, 1, self.count - 1))
        gap = e("Pad", gap, pads=(0, 0, 0, 1))
        close = e("LessOrEqual", gap, e("Mul", e("Abs", x), self.number(NEAR)))
        return e("And", e("Greater", gap, self.number(0)), close)
