"""Every error that Arcweld raises on purpose: one base class, one stable code for each kind of error.

A class also decides the exit status of ``onnx-to-engine``: 1 accuracy or speed, 2 usage or a bad file, 3 unsupported,
4 environment, compilation or device, 70 a defect.
"""

from __future__ import annotations


class ArcweldError(Exception):
    """Base of all errors.

    code       a stable identifier of the kind of error
    exit_code  the exit status of ``onnx-to-engine``
    message    one sentence that names what is wrong
    node       the graph node or file at fault, or None
    hint       one action that may help, or None

    ``str(error)`` is the message, the node and the hint.
    """

    code = "error"
    exit_code = 2

    def __init__(self, message: str, *, node: str | None = None, hint: str | None = None) -> None:
        self.message = message
        self.node = node
        self.hint = hint
        super().__init__(message)

    def __str__(self) -> str:
        named = not self.node or f"{self.node}]" in self.message  # a list of nodes says each one's place
        place = "" if named else f" [at {self.node}]"
        hint = f"\n  hint: {self.hint}" if self.hint else ""
        return f"{self.message}{place}{hint}"


class UsageError(ArcweldError):
    """An option, argument or call that makes no sense."""

    code = "usage"


class InputError(UsageError):
    """A run-time input with the wrong name, dtype, rank or shape."""

    code = "input"


class ModelError(ArcweldError):
    """A model that is damaged, inconsistent or not a model at all."""

    code = "model"


class UnsupportedError(ArcweldError):
    """Operators, types or attributes that are valid but that Arcweld cannot compile yet."""

    code = "unsupported"
    exit_code = 3


class InternalError(ArcweldError):
    """A defect of Arcweld: an unexpected failure on valid input."""

    code = "internal"
    exit_code = 70  # as sysexits.h has it


class VerifyError(ArcweldError):
    """The IR verifier found a broken graph: a defect of a pass or an importer, never of the user's model."""

    code = "verifier"


class CompileError(ArcweldError):
    """A generated kernel did not compile: a defect of a template or of the tool chain."""

    code = "compile"
    exit_code = 4


class CompileLimitError(CompileError):
    """A kernel whose compilation takes more time, memory or object code than any kernel should."""

    code = "compile-limit"


class EnvironmentError_(ArcweldError):
    """Something this machine lacks: a driver, NVRTC, a C++ compiler, disk space."""

    code = "environment"
    exit_code = 4


class EngineFileError(ArcweldError):
    """An engine file that is truncated, altered, or written by an unknown schema version."""

    code = "engine-file"


class ProfileError(ArcweldError):
    """A file of measured times that is damaged, or that was measured with another engine."""

    code = "profile"


class UntrustedError(EngineFileError):
    """An intact engine file whose kernels would run as host code, and that nothing vouches for."""

    code = "untrusted"


class DeviceError(ArcweldError):
    """A launch that failed on the device, or an access that the simulator's checked mode refused."""

    code = "device"
    exit_code = 4


class AccuracyError(ArcweldError):
    """Results outside the tolerance that was asked for."""

    code = "accuracy"
    exit_code = 1


class RegressionError(ArcweldError):
    """A contestant of a comparison that is slower than the first one by more than the threshold."""

    code = "regression"
    exit_code = 1
