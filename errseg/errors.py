"""The one error tree of errseg.

    ErrsegError                 anything errseg reports on purpose
    ├── UsageError              what was asked cannot be done as asked (exit code 2)
    │   ├── VocabularyError     a class list that cannot be read, with file and line
    │   ├── OutputError         an output folder that would lose or mix files
    │   ├── ConfigError         a model or training configuration that makes no sense
    │   └── DeviceError         a device or precision this machine does not have
    ├── InputError              one picture that cannot be read: the rest goes on (exit code 1)
    ├── WriteError              a result that cannot be written (disk full, read-only)
    ├── WeightsError            a checkpoint that is missing, damaged or of another model
    └── MissingDependencyError  an optional package is absent; the message holds the pip line

Every message says what came, what was expected and what to do. Errors of other libraries are
translated where they enter (`raise ... from`).
"""

from __future__ import annotations


class ErrsegError(Exception):
    """Base of every error that errseg raises on purpose."""


class UsageError(ErrsegError):
    """What was asked cannot be done as asked."""


class VocabularyError(UsageError):
    """A class list that cannot be read or makes no sense."""


class OutputError(UsageError):
    """An output folder in which a run would lose, mix or overwrite files."""


class ConfigError(UsageError):
    """A model or training configuration that makes no sense."""


class DeviceError(UsageError):
    """A device or precision that this machine does not have."""


class InputError(ErrsegError):
    """One input that cannot be read; the others are not affected."""


class WriteError(ErrsegError):
    """A result that cannot be written."""


class WeightsError(ErrsegError):
    """A checkpoint that is missing, damaged or made for another model."""


class MissingDependencyError(ErrsegError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed. "
            f"Type: pip install 'errseg[{extra}]'"
        )
