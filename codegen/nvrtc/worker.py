"""The NVRTC server, which the pool runs as a script: it loads NVRTC, and forks a confined child for each request.

NVRTC orders some instructions by addresses in its own heap. So addresses are not randomised, no child sees what another
has left behind, and each compiles in a thread whose heap is its own: equal requests give equal bytes. What the server
did before lies in the heap of its first thread, and must not decide what a child's thread gets: see ``ENVIRONMENT``,
``in_thread`` and ``compile_once``.

A child can open no file, start no program and reach no network, and its time, memory and output are bounded: a source
sees the headers that came with it and nothing else. This file imports the standard library only, never ``arcweld``.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import pickle
import platform
import resource
import signal
import struct
import sys
from collections.abc import Callable
from typing import IO, Any

# (processor seconds, bytes of address space, bytes of object code)
Limits = tuple[int, int, int]
# (source, file name, header texts, header names, flags, "cubin" or "ptx", limits, whether it must be confined)
Request = tuple[str, str, list[str], list[str], list[str], str, Limits, bool]
# (one of STATUS, object code, log or reason)
Reply = tuple[str, bytes, str]

# error: the source is at fault; missing: no NVRTC; time, memory, size: a limit; died: by itself; open: not confined
STATUS = ("ok", "error", "missing", "time", "memory", "size", "died", "open")
MAX_LOG = 1 << 20
OUT_OF_MEMORY = 1  # nvrtcResult

NO_RANDOMIZE = 0x0040000  # linux/personality.h
FIXED = "fixed"  # the argument of a server that was started again
RANDOM = b"random"  # the greeting of a server whose addresses are random
# The server's environment. A thread's own heap serves all its requests for memory of up to 32 MiB. Without glibc's
# cache of a thread, memory goes back to the heap that it is from, whichever thread frees it.
ENVIRONMENT = {
    "PYTHONMALLOC": "malloc", "MALLOC_MMAP_THRESHOLD_": str(32 << 20), "PYTHONHASHSEED": "0",
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0",
}  # fmt: skip

_HEAD = struct.Struct("<BQQ")  # status, bytes of object code, bytes of log

# ------------------------------------------------------------------------------------------------------- NVRTC


class NvrtcError(Exception):
    """A call of NVRTC that failed."""


class Nvrtc:
    """NVRTC by its C interface, with the library of built-in functions loaded too."""

    def __init__(self, path: str) -> None:
        """Raises OSError if the library cannot be loaded."""
        self._library = ctypes.CDLL(path)
        folder = os.path.dirname(os.path.realpath(path))
        for name in sorted(os.listdir(folder)):
            if name.startswith("libnvrtc-builtins.so"):  # which a confined child cannot load
                ctypes.CDLL(os.path.join(folder, name))

    def compile(self, request: Request) -> Reply:
        """Compiles one source, in a thread. Raises MemoryError, NvrtcError."""
        source, name, texts, names, flags, kind, _, _ = request
        create, run = self._library.nvrtcCreateProgram, self._library.nvrtcCompileProgram
        program = ctypes.c_void_p()
        what = (source.encode(), name.encode(), len(texts), _strings(texts), _strings(names))
        options = (len(flags), _strings(flags))
        results: list[int] = []

        def compiles() -> None:
            results.append(create(ctypes.byref(program), *what))
            if not results[0]:
                results.append(run(program, *options))

        gc.collect()  # so that no lists of free objects are left, which Python would take some from in the thread
        in_thread(compiles)
        _check("nvrtcCreateProgram", results[0])
        failed = results[1]
        log = self._get("ProgramLog", program)[:MAX_LOG].rstrip(b"\0").decode(errors="replace")
        if failed == OUT_OF_MEMORY or "catastrophic error: out of memory" in log:
            return "memory", b"", log
        if failed:
            return "error", b"", log if log.strip() else f"NVRTC reports error {failed}"
        return "ok", self._get("PTX" if kind == "ptx" else "CUBIN", program), log

    def _get(self, what: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, buffer)
        return buffer.raw

    def _call(self, name: str, *args: Any) -> None:
        _check(name, getattr(self._library, name)(*args))


def _check(name: str, result: int) -> None:
    if result == OUT_OF_MEMORY:
        raise MemoryError
    if result:
        raise NvrtcError(f"{name} reports error {result}")


def _strings(texts: list[str]) -> Any:
    return (ctypes.c_char_p * len(texts))(*[t.encode() for t in texts])


def in_thread(run: Callable[[], None]) -> None:
    """Calls ``run`` in a thread of the C library, and waits until nothing is left of the thread.

    glibc makes a heap for the first such thread, and gives it to the next one. Threads of Python would not do: which
    of the two threads frees an object of theirs depends on who is faster, and their end is told before it has come.
    Raises OSError if no thread can be started.
    """
    libc = ctypes.CDLL(None)
    body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: run())
    thread = ctypes.c_ulong()
    failed = libc.pthread_create(ctypes.byref(thread), None, body, None)
    if failed:
        raise OSError(failed, f"no thread can be started: {os.strerror(failed)}")
    libc.pthread_join(thread, None)


# ------------------------------------------------------------------------------------------------- a confined child

# System calls that resolve a path, start a program, use the network, or signal, trace or read another process, by
# machine; and the machine's number in linux/audit.h. The names are in the order of the numbers.
_FORBIDDEN = {
    # open stat lstat access shmget shmat socket connect bind execve kill truncate chdir rename mkdir rmdir creat link
    # unlink symlink readlink chmod chown lchown ptrace rt_sigqueueinfo mknod statfs chroot mount setxattr lsetxattr
    # tkill tgkill mq_open openat mkdirat mknodat fchownat futimesat newfstatat unlinkat renameat linkat symlinkat
    # readlinkat fchmodat faccessat unshare utimensat rt_tgsigqueueinfo perf_event_open open_by_handle_at setns
    # process_vm_readv process_vm_writev renameat2 bpf execveat userfaultfd statx pidfd_send_signal io_uring_setup
    # open_tree move_mount fsopen pidfd_open openat2 pidfd_getfd faccessat2 fchmodat2
    "x86_64": (0xC000003E, (
        2, 4, 6, 21, 29, 30, 41, 42, 49, 59, 62, 76, 80, 82, 83, 84, 85, 86, 87, 88, 89, 90, 92, 94, 101, 129, 133, 137,
        161, 165, 188, 189, 200, 234, 240, 257, 258, 259, 260, 261, 262, 263, 264, 265, 266, 267, 268, 269, 272, 280,
        297, 298, 304, 308, 310, 311, 316, 321, 322, 323, 332, 424, 425, 428, 429, 430, 434, 437, 438, 439, 452,
    )),
    # setxattr lsetxattr mknodat mkdirat unlinkat symlinkat linkat renameat mount statfs truncate faccessat chdir chroot
    # fchmodat fchownat openat readlinkat newfstatat utimensat unshare ptrace kill tkill tgkill rt_sigqueueinfo mq_open
    # shmget shmat socket bind connect execve rt_tgsigqueueinfo perf_event_open open_by_handle_at setns
    # process_vm_readv process_vm_writev renameat2 bpf execveat userfaultfd statx and the newer ones as above
    "aarch64": (0xC00000B7, (
        5, 6, 33, 34, 35, 36, 37, 38, 40, 43, 45, 48, 49, 51, 53, 54, 56, 78, 79, 88, 97, 117, 129, 130, 131, 138, 180,
        194, 196, 198, 200, 203, 221, 240, 241, 265, 268, 270, 271, 276, 280, 281, 282, 291, 424, 425, 428, 429, 430,
        434, 437, 438, 439, 452,
    )),
}  # fmt: skip
_LOAD, _JUMP_EQUAL, _JUMP_ABOVE, _RETURN = 0x20, 0x15, 0x35, 0x06  # linux/bpf_common.h
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EACCES  # linux/seccomp.h
_FIRST_X32 = 0x40000000  # x86's other numbers for the same calls
_DEATH_SIGNAL, _SECCOMP, _NO_NEW_PRIVILEGES, _FILTER = 1, 22, 38, 2  # linux/prctl.h


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _filter(machine: int, forbidden: tuple[int, ...]) -> bytes:
    """A BPF program: refuses the system calls ``forbidden``, and all of another machine's numbering."""
    code = [(_LOAD, 0, 0, 4), (_JUMP_EQUAL, 1, 0, machine), (_RETURN, 0, 0, _REFUSE), (_LOAD, 0, 0, 0)]
    code += [(_JUMP_ABOVE, len(forbidden) + 1, 0, _FIRST_X32)]
    code += [(_JUMP_EQUAL, len(forbidden) - k, 0, number) for k, number in enumerate(forbidden)]
    code += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


def confine() -> bool:
    """Forbids this process, for good, the calls in ``_FORBIDDEN``. False where the kernel or the machine cannot."""
    if platform.machine() not in _FORBIDDEN:
        return False
    code = _filter(*_FORBIDDEN[platform.machine()])
    program = _Program(len(code) // 8, code)
    libc = ctypes.CDLL(None)
    libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, None, 0, 0):
        return False
    return not libc.prctl(_SECCOMP, _FILTER, ctypes.addressof(program), 0, 0)


def _limit(limits: Limits) -> None:
    seconds, memory, _ = limits
    for what, most in (
        (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):  # fmt: skip
        _, hard = resource.getrlimit(what)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


def compile_once(nvrtc: Nvrtc, body: bytes) -> Reply:
    """Confines this process and compiles the request that ``body`` holds.

    All but the calls of NVRTC is done by the first thread, whose heap depends on what the server has done.
    """
    try:
        request: Request = pickle.loads(body)
        _limit(request[6])
        if not confine() and request[7]:
            return "open", b"", "this kernel cannot confine a process (seccomp)"
        status, code, log = nvrtc.compile(request)
        return ("size", b"", "") if len(code) > request[6][2] else (status, code, log)
    except (MemoryError, OSError):  # no memory for a thread, either
        return "memory", b"", ""
    except NvrtcError as error:
        return "error", b"", str(error)


# ----------------------------------------------------------------------------------------------------- the server


def send(stream: IO[bytes], body: bytes) -> None:
    """Writes one message after its length (8 bytes, little-endian). Raises BrokenPipeError if the reader is gone."""
    stream.write(struct.pack("<Q", len(body)) + body)
    stream.flush()


def receive(stream: IO[bytes]) -> bytes | None:
    """The next message, or None at the end of the stream."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    (length,) = struct.unpack("<Q", head)
    body = stream.read(length)
    return body if len(body) == length else None


def encode(reply: Reply) -> bytes:
    """A reply as bytes. They hold no pickles: a child has read a source that may be hostile."""
    status, code, log = reply
    text = log.encode(errors="replace")
    return _HEAD.pack(STATUS.index(status), len(code), len(text)) + code + text


def decode(body: bytes) -> Reply:
    """The reply that ``encode`` wrote. Raises ValueError for other bytes."""
    if len(body) < _HEAD.size:
        raise ValueError("no reply")
    status, code, log = _HEAD.unpack_from(body)
    if status >= len(STATUS) or _HEAD.size + code + log != len(body):
        raise ValueError("a damaged reply")
    at = _HEAD.size + code
    return STATUS[status], body[_HEAD.size : at], body[at:].decode(errors="replace")


def answer(nvrtc: Nvrtc, body: bytes) -> bytes:
    """The encoded reply to one request, from a child of its own."""
    reader, writer = os.pipe()
    limits: Limits = pickle.loads(body)[6]
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(reader)
            _close_all_but(writer)
            ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
            with os.fdopen(writer, "wb") as stream:
                stream.write(encode(compile_once(nvrtc, body)))
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        reply = stream.read(limits[2] + MAX_LOG + 4096)
        more = stream.read(1)
    if more:
        os.kill(child, signal.SIGKILL)
    _, status, used = os.wait4(child, 0)
    if more:
        return encode(("size", b"", ""))
    if status == 0:
        return reply
    return encode((_cause(os.waitstatus_to_exitcode(status), used, limits), b"", f"exit status {status}"))


def _close_all_but(writer: int) -> None:
    """Takes the server's pipes from a child: it must not read other requests or answer them."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(nothing, stream)
    os.closerange(3, writer)
    os.closerange(writer + 1, os.sysconf("SC_OPEN_MAX"))


def _cause(code: int, used: resource.struct_rusage, limits: Limits) -> str:
    """Why a child ended without a reply."""
    if code in (-signal.SIGXCPU, -signal.SIGKILL) and used.ru_utime + used.ru_stime >= limits[0] - 1:
        return "time"
    # NVRTC does not survive an allocation that fails; where address space ends, most of it is in use
    return "memory" if used.ru_maxrss * 1024 > limits[1] // 3 else "died"


def _fix_addresses() -> None:
    """Starts this program again with addresses that are not random. Returns where that is forbidden."""
    if ctypes.CDLL(None).personality(NO_RANDOMIZE) >= 0:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], FIXED])


def main(library: str, greeting: bytes) -> None:
    """Sends ``greeting``, then answers requests from standard input until it closes."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not land among the replies
    send(replies, greeting)
    try:
        nvrtc = Nvrtc(library)
    except OSError as error:
        while receive(sys.stdin.buffer) is not None:
            send(replies, encode(("missing", b"", str(error))))
        return
    in_thread(lambda: None)  # its heap is that of each child's thread: the same place for all of them
    gc.disable()  # how much was done before decides when Python collects, and so what a thread finds
    gc.freeze()
    while (body := receive(sys.stdin.buffer)) is not None:
        try:
            send(replies, answer(nvrtc, body))
        except BrokenPipeError:  # whoever asked was killed meanwhile
            os._exit(1)  # without the traceback of another flush


if __name__ == "__main__":
    if FIXED not in sys.argv:
        _fix_addresses()
    main(sys.argv[1], FIXED.encode() if FIXED in sys.argv else RANDOM)
