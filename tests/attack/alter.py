"""Alters engine files as an attacker who knows the format: one part changes, and all hashes agree again."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import re
import struct
from collections.abc import Callable
from typing import Any

from arcweld.runtime import container
from arcweld.runtime.engine_file import GRAPH, MANIFEST, VERIFY, WEIGHTS

Members = dict[str, bytes]
NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    31,
    33,
    64,
    255,
    1 << 16,
    (1 << 31) - 1,
    1 << 31,
    1 << 40,
    (1 << 63) - 1,
    1 << 64,
    -(1 << 31),
)
WORDS = (
    "f32", "f16", "i64", "bool", "str", "N", "Relu", "MatMul", "Gather", "Slice", "Pad", "Reshape", "Transpose",
    "Softmax", "Loop", "data", "float(nan)", "(0,)", "()", "[", "]", "_", "%x", "N*N", "floordiv(N, 2)", "N - 1",
    "1 << 40", "9" * 40, "\0", "é", "../../etc", "__import__('os')", "x" * 5000,
)  # fmt: skip
CODE = (
    "__attribute__((constructor)) static void f() { __builtin_trap(); }\n", "static int x = (__builtin_trap(), 1);\n",
    '#include "/etc/passwd"\n', "#define float double\n", "#error stop\n", "while (1) {}\n", "*(volatile int*)8 = 1;\n",
    "}", "{", "*/", "/*", "\\\n",
)  # fmt: skip
_TOKEN = re.compile(r"-?\d+(?:\.\d+)?|[A-Za-z_][\w.]*|[^\sA-Za-z_\d]")


def read_members(data: bytes) -> Members:
    """The members of an archive by name."""
    return {n: data[s.offset : s.offset + s.size] for n, s in container.read_directory(memoryview(data)).items()}


def written(members: Members) -> bytes:
    """The archive of these members as they are."""
    stream = io.BytesIO()
    with container.Writer(stream) as writer:
        for name, body in members.items():
            writer.add(name, [body], len(body))
    return stream.getvalue()


def consistent(members: Members) -> Members:
    """The members with a manifest that lists all of them with their sizes and hashes."""
    try:
        manifest = json.loads(members[MANIFEST])
        manifest["members"] = {
            n: {"size": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in members.items() if n != MANIFEST
        }
    except (KeyError, ValueError, TypeError):  # the alteration left no JSON object
        return members
    rest = {n: b for n, b in members.items() if n != MANIFEST}
    return {**rest, MANIFEST: json.dumps(manifest).encode()}


def altered(original: bytes, rng: random.Random) -> bytes:
    """A file with one to three parts altered; one in ten keeps the old hashes, one in ten has bytes changed."""
    members = read_members(original)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        with contextlib.suppress(KeyError, ValueError, IndexError):  # an earlier one took away what this one alters
            members = rng.choice(ALTERATIONS)(members, rng)
    if rng.random() < 0.9:
        members = consistent(members)
    try:
        data = written(members)
    except (ValueError, struct.error):  # a name that no archive can hold
        data = original
    return flipped(data, rng) if rng.random() < 0.1 else data


def flipped(data: bytes, rng: random.Random) -> bytes:
    """The bytes with some of them changed, and perhaps without their end."""
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed[: rng.randrange(len(changed))] if rng.random() < 0.3 else changed)


# -------------------------------------------------------------------------------------------------------- texts


def text_altered(text: str, rng: random.Random) -> str:
    """A text with tokens exchanged, or lines left out, repeated or swapped."""
    lines = text.split("\n")
    match rng.randrange(5):
        case 0:
            del lines[rng.randrange(len(lines))]
        case 1:
            lines.insert(rng.randrange(len(lines)), rng.choice(lines))
        case 2:
            a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
            lines[a], lines[b] = lines[b], lines[a]
        case _:
            k = rng.randrange(len(lines))
            lines[k] = token_altered(lines[k], rng)
    return "\n".join(lines)


def token_altered(line: str, rng: random.Random) -> str:
    tokens = list(_TOKEN.finditer(line))
    if not tokens:
        return rng.choice(WORDS)
    t = rng.choice(tokens)
    new = str(rng.choice(NUMBERS)) if t[0].lstrip("-")[:1].isdigit() and rng.random() < 0.8 else rng.choice(WORDS)
    return line[: t.start()] + new + line[t.end() :]


def graph(members: Members, rng: random.Random) -> Members:
    """Changes the stored graph."""
    return {**members, GRAPH: text_altered(members[GRAPH].decode(), rng).encode()}


def source(members: Members, rng: random.Random) -> Members:
    """Changes a kernel's source or a header: tokens, or code of the attacker's."""
    name = rng.choice([n for n in members if n.startswith("kernels/")])
    text = members[name].decode()
    if rng.random() < 0.5:
        lines = text.split("\n")
        lines.insert(rng.randrange(len(lines)), rng.choice(CODE))
        text = "\n".join(lines)
    else:
        text = text_altered(text, rng)
    return {**members, name: text.encode()}


def names(members: Members, rng: random.Random) -> Members:
    """Leaves a member out, renames it, exchanges two, or adds one."""
    chosen, other = rng.choice(list(members)), rng.choice(list(members))
    match rng.randrange(4):
        case 0:
            return {n: b for n, b in members.items() if n != chosen}
        case 1:
            new = rng.choice((chosen + "x", "kernels/x.cu", "cubin/sm_90a/x.cubin", "ptx/x.ptx", "kernels/include/x"))
            return {(new if n == chosen else n): b for n, b in members.items()}
        case 2:
            return {**members, chosen: members[other], other: members[chosen]}
        case _:
            return {**members, f"kernels/extra{rng.randrange(9)}.cu": members[chosen]}


# --------------------------------------------------------------------------------------------------------- JSON


def value_altered(value: Any, rng: random.Random) -> Any:
    """A JSON value with one thing in it changed, somewhere deep in it."""
    if isinstance(value, dict) and value and rng.random() < 0.95:
        key = rng.choice(list(value))
        if rng.random() < 0.05:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: value_altered(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        k = rng.randrange(len(value))
        match rng.randrange(8):
            case 0:
                return value[:k] + value[k + 1 :]
            case 1:
                return [*value, value[k]]
            case 2:
                return value[::-1]
            case _:
                return [*value[:k], value_altered(value[k], rng), *value[k + 1 :]]
    if isinstance(value, str) and value and rng.random() < 0.5:
        return token_altered(value, rng)
    return rng.choice((rng.choice(NUMBERS), rng.choice(WORDS), None, True, 1.5, [], {}, [value], {"a": value}))


def file_altered(name: str, body: bytes, rng: random.Random) -> bytes:
    """A JSON file with a value changed, or a text with a line changed. Raises ValueError for a damaged one."""
    if name.endswith(".json"):
        return json.dumps(value_altered(json.loads(body), rng)).encode(errors="surrogatepass")
    return text_altered(body.decode(), rng).encode()


def program(members: Members, rng: random.Random) -> Members:
    """Changes the program or another part of the manifest."""
    try:
        manifest = json.loads(members[MANIFEST])
    except ValueError:
        return members
    if isinstance(manifest, dict) and isinstance(manifest.get("program"), dict) and rng.random() < 0.9:
        manifest["program"] = value_altered(manifest["program"], rng)
    else:
        manifest = value_altered(manifest, rng)
    return {**members, MANIFEST: json.dumps(manifest).encode()}


def evidence(members: Members, rng: random.Random) -> Members:
    """Changes the evidence."""
    if VERIFY not in members:
        return members
    try:
        found = json.loads(members[VERIFY])
    except ValueError:
        return members
    return {**members, VERIFY: json.dumps(value_altered(found, rng)).encode()}


def weights(members: Members, rng: random.Random) -> Members:
    """Changes the header of the weights, or their bytes."""
    body = members.get(WEIGHTS, b"")
    if len(body) < 9:
        return members
    if rng.random() < 0.3:
        return {**members, WEIGHTS: flipped(body, rng)}
    with contextlib.suppress(ValueError):
        return {**members, WEIGHTS: tensors_altered(body, rng)}
    return members


def tensors_altered(body: bytes, rng: random.Random) -> bytes:
    """A file of tensors in the safetensors format with its header changed. Raises ValueError for a damaged one."""
    length = int.from_bytes(body[:8], "little")
    header = json.dumps(value_altered(json.loads(body[8 : 8 + length]), rng)).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + body[8 + length :]


def together(members: Members, rng: random.Random) -> Members:
    """Changes the same number everywhere: in the graph, the program and the sources, so that they agree."""
    numbers = re.findall(rb"\d+", members.get(GRAPH, b"") or b"1")
    old = rng.choice(numbers) if numbers else b"1"
    new = str(abs(rng.choice(NUMBERS))).encode()
    whole = re.compile(rb"(?<![\w.])" + old + rb"(?![\w.])")
    return {n: whole.sub(new, b) if n != WEIGHTS else b for n, b in members.items()}


Alteration = Callable[[Members, random.Random], Members]
ALTERATIONS: tuple[Alteration, ...] = (
    graph, graph, graph, program, program, program, source, source, names, evidence, weights, together,
)  # fmt: skip
