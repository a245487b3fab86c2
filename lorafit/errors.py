"""Every error a person can meet, with its exit code.

    LorafitError                  1   a bug: nothing below fits
    ├── UsageError                2   the command line is wrong
    ├── InputError                3   a file that was given cannot be used
    │   ├── ConfigError               preset or config file (collects every problem)
    │   ├── DataError                 training data
    │   ├── ModelError                base model or tokenizer
    │   └── AdapterError              LoRA adapter
    ├── DeviceError               4   the device is missing or cannot do what was asked
    │   ├── MemoryFitError            the run does not fit, or ran out of memory
    │   └── PeerError                 another process of the run failed (with that one's code)
    ├── CheckpointError           5   a checkpoint is unusable, or does not match the run
    ├── DivergedError             6   loss or gradient is not finite
    ├── StorageError              7   disk or permission
    └── RunInterruptedError         75   stopped on request, state saved: run again to go on

A message says what happened with the offending value, where, and why it matters; the hint is
what to type next.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """Process exit codes; scripts rely on them."""

    OK = 0
    BUG = 1
    USAGE = 2
    BAD_INPUT = 3
    DEVICE = 4
    CHECKPOINT = 5
    DIVERGED = 6
    STORAGE = 7
    INTERRUPTED_SAVED = 75
    INTERRUPTED = 130
    TERMINATED = 143


class LorafitError(Exception):
    """An error to show to a person: `message`, an optional `hint` and an exit code.

    `where` is a file:line, a flag or a key, printed before the message.
    """

    exit_code = ExitCode.BUG

    def __init__(self, message: str, *, hint: str | None = None, where: str | None = None) -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.message = message
        self.hint = hint
        self.where = where


class UsageError(LorafitError):
    """The command line asks for something that does not exist or contradicts itself."""

    exit_code = ExitCode.USAGE


class InputError(LorafitError):
    """A file or folder that the person named cannot be used."""

    exit_code = ExitCode.BAD_INPUT


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a configuration."""

    where: str
    """Origin and key, such as `mine.yaml:7: lora_r` or `flag --lora-r`."""
    message: str
    """What is wrong, with the value, and what is allowed."""
    hint: str | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


class ConfigError(InputError):
    """A preset or configuration is wrong; carries every problem, not only the first.

    The exit code is 2 when all problems come from the command line, 3 otherwise.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        *,
        hint: str | None = None,
        exit_code: ExitCode = ExitCode.BAD_INPUT,
    ) -> None:
        self.problems = tuple(problems)
        hints = [
            problem.hint if len(problems) == 1 else f"{problem.where}: {problem.hint}"
            for problem in problems
            if problem.hint
        ]
        super().__init__("\n".join(str(p) for p in problems), hint=hint or "\n".join(hints) or None)
        self.exit_code = exit_code


class DataError(InputError):
    """The training data cannot be read or is not what training needs."""


class ModelError(InputError):
    """The base model or its tokenizer cannot be used."""


class AdapterError(InputError):
    """A LoRA adapter cannot be used."""


class DeviceError(LorafitError):
    """The device is missing, or cannot do what the settings ask of it."""

    exit_code = ExitCode.DEVICE


class MemoryFitError(DeviceError):
    """The run does not fit in memory, or ran out of it."""


class PeerError(DeviceError):
    """Another process of the run failed, ended or hangs; carries that one's exit code.

    `is_told`: the process that failed has said it to the person already.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        exit_code: ExitCode = ExitCode.DEVICE,
        is_told: bool = False,
    ) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code
        self.is_told = is_told


class CheckpointError(LorafitError):
    """A checkpoint is missing or damaged, or was written by a different run."""

    exit_code = ExitCode.CHECKPOINT


class DivergedError(LorafitError):
    """Loss or gradient norm is not finite; the update was not applied."""

    exit_code = ExitCode.DIVERGED


class StorageError(LorafitError):
    """A path cannot be written: full disk, permission, or something else lies there."""

    exit_code = ExitCode.STORAGE


class RunInterruptedError(LorafitError):
    """The run was asked to stop; state was saved, and the same command continues it."""

    exit_code = ExitCode.INTERRUPTED_SAVED
