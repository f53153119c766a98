"""One call of NVRTC: imported by the compiler, and run as a script by the pool's worker processes.

A worker must start fast, so this file imports the standard library and ``cupy_backends`` only, never ``arcweld``.
Messages on its pipes are pickles, each after its length in bytes (8 bytes, little-endian).
"""

from __future__ import annotations

import os
import pickle
import struct
import sys
from typing import IO, Any

# (source, file name, header texts, header names, flags, "cubin" or "ptx")
Request = tuple[str, str, list[str], list[str], list[str], str]
# ("ok" | "error" | "missing", object code, log or reason)
Reply = tuple[str, bytes, str]

_binding: Any = None


def binding() -> Any:
    """CuPy's NVRTC module, with the library loaded. Raises ImportError or RuntimeError if one of them is missing."""
    global _binding
    if _binding is None:
        from cupy_backends.cuda.libs import nvrtc

        nvrtc.getVersion()
        _binding = nvrtc
    return _binding


def compile_once(request: Request) -> Reply:
    """Compiles one source. Status ``error``: the source is at fault; ``missing``: NVRTC cannot be loaded."""
    try:
        nvrtc = binding()
    except (ImportError, RuntimeError, OSError) as error:
        return "missing", b"", str(error)
    source, name, texts, names, flags, kind = request
    program = nvrtc.createProgram(source, name, [t.encode() for t in texts], [n.encode() for n in names])
    try:
        try:
            nvrtc.compileProgram(program, tuple(flags))
        except nvrtc.NVRTCError as error:
            log = nvrtc.getProgramLog(program).rstrip("\0")
            return "error", b"", log if log.strip() else str(error)
        log = nvrtc.getProgramLog(program).rstrip("\0")
        if kind == "ptx":
            return "ok", nvrtc.getPTX(program).rstrip(b"\0") + b"\0", log
        # The binding drops the last byte of the ELF file, which is always zero.
        return "ok", nvrtc.getCUBIN(program) + b"\0", log
    finally:
        nvrtc.destroyProgram(program)


def send(stream: IO[bytes], message: object) -> None:
    """Writes one message and flushes the stream. Raises BrokenPipeError if the reader is gone."""
    body = pickle.dumps(message, protocol=5)
    stream.write(struct.pack("<Q", len(body)) + body)
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """The next message, or None at the end of the stream."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    (length,) = struct.unpack("<Q", head)
    body = stream.read(length)
    return pickle.loads(body) if len(body) == length else None


def main() -> None:
    """Answers requests from standard input until it closes."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not land among the replies
    while (request := receive(sys.stdin.buffer)) is not None:
        try:
            send(replies, compile_once(request))
        except BrokenPipeError:  # whoever asked was killed meanwhile
            os._exit(1)  # without the traceback of another flush


if __name__ == "__main__":
    main()
