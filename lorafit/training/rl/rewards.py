"""Reward functions: the person's own Python file, read without running it, then run once.

It is the only code that is ever executed from a path, and only where the command line names it.
"""

import ast
import inspect
import math
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from lorafit.config.layers import Resolved
from lorafit.errors import InputError, UsageError
from lorafit.files import sha256_of
from lorafit.text import excerpt

_NAMED_BY = frozenset({"flag", "override"})
_SHAPE = "def reward(prompts, completions, **fields): return [one number for each completion]"


class RewardFile(NamedTuple):
    """A file that was read, not run, and the functions in it that give rewards."""

    path: Path
    names: tuple[str, ...]
    lines: dict[str, int]
    """The line on which each function is defined."""
    sha256: str


def read_reward_file(resolved: Resolved) -> RewardFile:
    """Return the reward file that the command line names, without running anything in it.

    Without names behind the path, every function of the file counts that has no leading
    underscore.

    Raises:
        UsageError: something else than the command line names it.
        InputError: it is missing, is not Python, or has no such function.
    """
    if resolved.settings.reward_functions is None:
        raise UsageError(
            "method grpo learns from rewards, and no reward function is named",
            hint="add --reward-functions FILE.py (docs/RL.md shows one)",
        )
    origin = resolved.origins["reward_functions"]
    if origin.kind not in _NAMED_BY:
        raise UsageError(
            "a file of code is run only where the command line itself names it",
            where=f"reward_functions ({origin})",
            hint="take it out there, and add --reward-functions FILE.py",
        )
    path_text, _, names_text = str(resolved.settings.reward_functions).partition(".py:")
    path = Path(path_text + ".py" if names_text else path_text)
    lines = _functions_in(path)
    asked = tuple(name.strip() for name in names_text.split(",") if name.strip())
    for name in asked:
        if name not in lines:
            raise InputError(
                f"has no function {excerpt(name, 60)}; it has {_listed(lines)}",
                where=str(path),
                hint=f"--reward-functions {path}:{next(iter(lines), 'NAME')}",
            )
    names = asked or tuple(name for name in lines if not name.startswith("_"))
    if not names:
        raise InputError("defines no function", where=str(path), hint=_SHAPE)
    return RewardFile(path, names, lines, sha256_of(path))


def _listed(lines: dict[str, int]) -> str:
    return excerpt(", ".join(lines), 120) or "none"


def _functions_in(path: Path) -> dict[str, int]:
    """Return the functions at the top level of a Python file and their lines."""
    if path.suffix != ".py":
        raise InputError("is not a .py file", where=str(path), hint="--reward-functions FILE.py")
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except OSError as problem:
        raise InputError(
            f"the reward functions cannot be read: {problem.strerror or problem}",
            where=str(path),
            hint="--reward-functions names an existing Python file",
        ) from None
    except (SyntaxError, ValueError) as problem:
        line = getattr(problem, "lineno", None) or 1
        text = getattr(problem, "msg", None) or str(problem)
        raise InputError(
            f"is not Python: {excerpt(text, 160)}",
            where=f"{path}:{line}",
            hint="correct the line, then run the same command again",
        ) from None
    return {node.name: node.lineno for node in tree.body if isinstance(node, ast.FunctionDef)}


def load_reward_functions(file: RewardFile) -> list[Callable[..., list[float]]]:
    """Run the file and return its reward functions, each of which checks what it returns.

    Raises:
        InputError: the file fails as it runs.
    """
    module = ModuleType("lorafit_reward_functions")
    module.__file__ = str(file.path)
    try:
        code = compile(file.path.read_bytes(), str(file.path), "exec")
        exec(code, module.__dict__)  # noqa: S102  # the person's own file, named to be run
    except (Exception, SystemExit) as problem:
        raise _failed(file, problem, "the file fails as it is run") from problem
    return [_checked(file, name, getattr(module, name)) for name in file.names]


def _checked(file: RewardFile, name: str, function: Any) -> Callable[..., list[float]]:
    where = f"{file.path}:{file.lines[name]}"
    if not callable(function) or inspect.iscoroutinefunction(function):
        raise InputError(f"{name} is not a plain function any more", where=where, hint=_SHAPE)

    def rewards(prompts: Sequence[Any], completions: Sequence[Any], **fields: Any) -> list[float]:
        for internal in ("completion_ids", "trainer_state", "log_extra", "log_metric"):
            fields.pop(internal, None)
        try:
            found = function(prompts=list(prompts), completions=list(completions), **fields)
        except (Exception, SystemExit) as problem:
            raise _failed(file, problem, f"{name} failed") from problem
        return _numbers(found, len(completions), name, where)

    rewards.__name__ = name
    return rewards


def _numbers(found: Any, count: int, name: str, where: str) -> list[float]:
    """Return what a reward function gave as numbers, one for each completion."""
    try:
        values = [float(value) for value in found]
    except (TypeError, ValueError):
        shown = excerpt(repr(found), 80)
        raise InputError(
            f"{name} returned {shown}, which is not a list of numbers", where=where, hint=_SHAPE
        ) from None
    if len(values) != count:
        raise InputError(
            f"{name} returned {len(values)} rewards for {count} completions: it could not be told "
            "which reward belongs to which answer",
            where=where,
            hint=_SHAPE,
        )
    bad = next((index for index, value in enumerate(values) if not math.isfinite(value)), None)
    if bad is not None:
        raise InputError(
            f"{name} returned {values[bad]} for completion {bad + 1} of {count}: a reward must be "
            "finite, or it would spoil every weight",
            where=where,
            hint="return a number such as 0.0 for an answer that cannot be judged",
        )
    return values


def _failed(file: RewardFile, problem: BaseException, what: str) -> InputError:
    frames = traceback.extract_tb(problem.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(file.path)]
    text = excerpt(f"{type(problem).__name__}: {problem}", 200)
    return InputError(
        f"{what}: {text}",
        where=f"{file.path}:{lines[-1]}" if lines else str(file.path),
        hint="correct it, then run the same command again; a checkpoint goes on where it was",
    )
