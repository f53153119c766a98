"""Keys and values that exporters repeat for groups of query heads: attention reads them once."""

from __future__ import annotations

import pytest
from pass_tools import body, check, ops

from arcweld.passes.attention import attention
from arcweld.passes.cleanup import cleanup


def test_keys_of_one_group_are_shared() -> None:
    text = """
        input %q: f32[2, 6, 5, 8]
        input %k: f32[2, 1, 7, 8]
        input %v: f32[2, 1, 7, 4]
        weight %c: f32[] data=0.5
        %kt = Transpose(%k, perm=(0, 1, 3, 2))
        %ks = Mul(%kt, %c)
        %k6 = Expand(%ks, shape=(2, 6, 8, 7))
        %v6 = Expand(%v, shape=(2, 6, 7, 4))
        %s = MatMul(%q, %k6)
        %p = Softmax(%s, axis=3)
        %y = MatMul(%p, %v6)
        output %y
    """
    after = check(text, attention, cleanup)
    assert body(after) == "%y = Attention(%q, %k, %v, scale=0.5, is_causal=0, fill=float(-inf), softcap=0.0)\noutput %y"


def test_keys_repeated_over_the_batch_stay_repeated() -> None:
    text = """
        input %q: f32[2, 6, 5, 8]
        input %k: f32[1, 6, 7, 8]
        input %v: f32[2, 6, 7, 4]
        %kt = Transpose(%k, perm=(0, 1, 3, 2))
        %k6 = Expand(%kt, shape=(2, 6, 8, 7))
        %s = MatMul(%q, %k6)
        %p = Softmax(%s, axis=3)
        %y = MatMul(%p, %v)
        output %y
    """
    assert ops(check(text, attention, cleanup)) == ["Expand", "Attention"]


def test_repeated_keys_are_shared() -> None:
    repeat = """
        %{0}1 = Reshape(%{0}, shape=(2, 2, 1, 7, 8))
        %{0}2 = Expand(%{0}1, shape=(2, 2, 3, 7, 8))
        %{0}3 = Reshape(%{0}2, shape=(2, 6, 7, 8))
    """
    text = f"""
        input %q: f32[2, 6, 5, 8]
        input %k: f32[2, 2, 7, 8]
        input %v: f32[2, 2, 7, 8]
        {repeat.format("k")}{repeat.format("v")}
        %kt = Transpose(%k3, perm=(0, 1, 3, 2))
        %s = MatMul(%q, %kt)
        %p = Softmax(%s, axis=3)
        %y = MatMul(%p, %v3)
        output %y
    """
    expected = "%y = Attention(%q, %k, %v, scale=1.0, is_causal=0, fill=float(-inf), softcap=0.0)\noutput %y"
    assert body(check(text, attention, cleanup)) == expected


def test_repeated_keys_behind_a_transpose_are_shared() -> None:
    repeat = """
        %{0}1 = Reshape(%{0}, shape=(2, 7, 2, 1, 8))
        %{0}2 = Expand(%{0}1, shape=(2, 7, 2, 3, 8))
        %{0}3 = Reshape(%{0}2, shape=(2, 7, 6, 8))
        %{0}4 = Transpose(%{0}3, perm=(0, 2, 1, 3))
    """
    text = f"""
        input %q: f32[2, 6, 5, 8]
        input %k: f32[2, 7, 16]
        input %v: f32[2, 7, 2, 8]
        {repeat.format("k")}{repeat.format("v")}
        %y = Attention(%q, %k4, %v4, scale=0.5)
        output %y
    """
    after = check(text, attention, cleanup)
    assert ops(after) == ["Reshape", "Transpose", "Transpose", "Attention"]
    assert after.nodes[-1].operands()[1].shape == (2, 2, 7, 8)


@pytest.mark.parametrize("shape", ["(2, 2, 7, 1, 8)", "(2, 7, 1, 2, 8)"])
def test_other_expansions_are_not_heads(shape: str) -> None:
    wide = shape.replace("1", "3")
    text = f"""
        input %q: f32[2, 6, 7, 8]
        input %k: f32[2, 7, 16]
        %k1 = Reshape(%k, shape={shape})
        %k2 = Expand(%k1, shape={wide})
        %k3 = Reshape(%k2, shape=(2, 6, 7, 8))
        %y = Attention(%q, %k3, %k3, scale=0.5)
        output %y
    """
    assert "Expand" in ops(check(text, attention, cleanup))
