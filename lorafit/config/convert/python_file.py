"""Literal assignments of a Python file, read off its syntax tree: nothing is ever executed.

`learning_rate = 5e-5`, `config = {"epochs": 2}`, `args = TrainingArguments(seed=1)`,
`config["epochs"] = 2` and the same in the body of a class are read. Whatever would need running
is told, and a name that code may have changed later counts as unknown.
"""

import ast
import warnings
from typing import NamedTuple

from lorafit.config.document import MAX_DEPTH, Document, FileError, Node, Scalar, Source

# Calls whose keywords are settings, read as a section of the configuration.
_SECTION_CALLS = frozenset(
    {"dict", "SimpleNamespace", "TrainingArguments", "SFTConfig", "LoraConfig",
     "BitsAndBytesConfig"}
)  # fmt: skip
_HARMLESS = (ast.Import, ast.ImportFrom, ast.Pass, ast.Global, ast.Nonlocal)


class Unread(NamedTuple):
    """A place of the file that was not read, and why."""

    key: str
    line: int
    reason: str


class PythonConfig(NamedTuple):
    """What a Python file says without being run."""

    document: Document
    unread: tuple[Unread, ...]


def read_python(source: Source) -> PythonConfig:
    """Return the literal assignments of a Python file, in lower case, with their lines.

    Raises:
        ConfigError: the text is not Python.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in strings; the file is not ours
            tree = ast.parse(source.text)
    except SyntaxError as error:
        line, column = max(1, error.lineno or 1), error.offset or 1
        failure = FileError(f"this is not Python: {error.msg}", line=line, column=column)
        raise failure.to_config_error(source) from None
    except (ValueError, RecursionError, MemoryError):
        failure = FileError("this is not Python that can be read: it nests too deep", line=1)
        raise failure.to_config_error(source) from None
    reader = _Reader()
    reader.block(tree.body, reader.entries)
    return PythonConfig(Document(source.name, reader.entries), tuple(reader.unread))


class _NotLiteralError(Exception):
    """An expression that would have to be run."""


class _Reader:
    def __init__(self) -> None:
        self.entries: dict[str, Node] = {}
        self.unread: list[Unread] = []

    def block(self, body: list[ast.stmt], into: dict[str, Node]) -> None:
        for statement in body:
            if isinstance(statement, ast.Assign | ast.AnnAssign):
                self._assignment(statement, into)
            elif isinstance(statement, ast.ClassDef):
                section: dict[str, Node] = {}
                self.block(statement.body, section)
                into[statement.name.lower()] = Node(section, statement.lineno)
            elif not isinstance(statement, _HARMLESS) and not _is_text(statement):
                self._code(statement, into)

    def _assignment(self, statement: ast.Assign | ast.AnnAssign, into: dict[str, Node]) -> None:
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        if statement.value is None:  # `seed: int` declares, and gives nothing
            return
        for target in targets:
            place = _place(target, into)
            if place is None:
                self._forget(statement, into, "the left side is not one name")
                continue
            entries, key = place
            entries.pop(key, None)
            self._read(key, statement.value, statement.lineno, entries, depth=1)

    def _read(
        self, key: str, expression: ast.expr, line: int, into: dict[str, Node], depth: int
    ) -> None:
        """Put a literal into `into`; of a mapping, each entry that is one."""
        try:
            items = _entries_of(expression)
            if items is None:
                into[key] = Node(_literal(expression, depth), line)
                return
            if depth > MAX_DEPTH:
                raise _NotLiteralError(f"more than {MAX_DEPTH} levels of nesting")
            section: dict[str, Node] = {}
            for name, value in items:
                self._read(name, value, value.lineno, section, depth + 1)
            into[key] = Node(section, line)
        except _NotLiteralError as reason:
            self.unread.append(Unread(key, line, str(reason)))

    def _code(self, statement: ast.stmt, into: dict[str, Node]) -> None:
        kind = type(statement).__name__.lower().removesuffix("def").replace("expr", "call")
        self._forget(statement, into, f"code ({kind}) is never run, nor what it sets read")

    def _forget(self, statement: ast.stmt, into: dict[str, Node], reason: str) -> None:
        """Report a statement, and drop the values of names that running it might change."""
        self.unread.append(Unread(_source(statement), statement.lineno, reason))
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        for node in ast.walk(statement):
            name = node.id if isinstance(node, ast.Name) else None
            changed = isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)
            if name and changed and into.pop(name.lower(), None) is not None:
                message = f"line {statement.lineno} may change it, so its value is not known"
                self.unread.append(Unread(name.lower(), statement.lineno, message))


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _place(target: ast.expr, into: dict[str, Node]) -> tuple[dict[str, Node], str] | None:
    """Return the mapping and key that a target names: `a`, `a["b"]` or `a.b`."""
    if isinstance(target, ast.Name):
        return into, target.id.lower()
    key = None
    if isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant):
        key = target.slice.value
    elif isinstance(target, ast.Attribute):
        key = target.attr
    if not isinstance(key, str) or not isinstance(target, ast.Subscript | ast.Attribute):
        return None
    outer = _place(target.value, into)
    if outer is None:
        return None
    entries, name = outer
    section = entries.setdefault(name, Node({}, target.lineno)).value
    return (section, key.lower()) if isinstance(section, dict) else None


def _entries_of(expression: ast.expr) -> list[tuple[str, ast.expr]] | None:
    """Return the entries of a mapping, or of a call such as LoraConfig(r=8), which is not made."""
    if isinstance(expression, ast.Dict):
        entries = []
        for key, value in zip(expression.keys, expression.values, strict=True):
            if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
                raise _NotLiteralError("a key of the mapping is not text")
            entries.append((key.value, value))
        return entries
    if isinstance(expression, ast.Call) and _called(expression) in _SECTION_CALLS:
        if expression.args or any(keyword.arg is None for keyword in expression.keywords):
            raise _NotLiteralError(f"{_called(expression)}(...) takes more than keywords")
        return [(str(keyword.arg), keyword.value) for keyword in expression.keywords]
    return None


def _called(call: ast.Call) -> str:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _literal(expression: ast.expr, depth: int) -> "Scalar | list[Node] | dict[str, Node]":
    if depth > MAX_DEPTH:
        raise _NotLiteralError(f"more than {MAX_DEPTH} levels of nesting")
    if isinstance(expression, ast.Constant):
        return _scalar(expression.value)
    if isinstance(expression, ast.UnaryOp) and isinstance(expression.op, ast.USub | ast.UAdd):
        value = _literal(expression.operand, depth + 1)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return -value if isinstance(expression.op, ast.USub) else value
    if isinstance(expression, ast.List | ast.Tuple | ast.Set):
        return [Node(_literal(item, depth + 1), item.lineno) for item in expression.elts]
    raise _NotLiteralError(f"{_source(expression)!r} is not a literal, and code is never run")


def _source(node: ast.AST) -> str:
    """Return the beginning of the code of a node, on one line."""
    try:
        return ast.unparse(node).split("\n")[0][:60]
    except RecursionError:
        return "a very long expression"


def _scalar(value: object) -> Scalar:
    is_huge = isinstance(value, int) and abs(value) >= 10**25
    if not is_huge and (value is None or isinstance(value, str | int | float)):
        return value
    raise _NotLiteralError("this is no value that a setting can have")
