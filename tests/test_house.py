"""Rules of the house, checked on the source itself."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from lorafit.cli.main import COMMANDS

PACKAGE = Path(__file__).resolve().parents[1] / "lorafit"
MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in MODULES]

# A module may import, at its top, from its own layer and from those below.
LAYERS = (
    {"errors", "units", "text", "files", ""},
    {"config", "hardware"},
    {"model", "data"},
    {"memory"},
    {"evaluation", "training", "report", "doctor", "demo", "export"},
    {"cli", "__main__"},
)
HEAVY = {"torch", "transformers", "peft", "datasets", "pyarrow", "bitsandbytes", "accelerate"}
MAY_BE_HEAVY = {"model", "training", "evaluation"}
FORBIDDEN = {
    "pickle": r"\b(import|from) (pickle|cPickle|dill|joblib|marshal|shelve)\b",
    # Restricted to tensors, numbers and containers, it is no way to run code.
    "torch.load": r"\btorch\.load\((?!.*\bweights_only=True\))",
    "yaml.load": r"\byaml\.(unsafe_|full_)?load(_all)?\(",
    "eval": r"(?<![\w.])eval\(",
    "exec": r"(?<![\w.])exec\(",
    "shell": r"shell\s*=\s*True",
    "os.system": r"\bos\.(system|popen)\(",
    "remote code": r"trust_remote_code\s*=\s*(?!False)",
    "archives": r"extractall|unpack_archive",
}
# Reward functions are the person's own code, run where the command line names their file.
THE_PERSONS_OWN = ("exec", PACKAGE / "training" / "rl" / "rewards.py")


def part_of(path):
    """Return the part of the package that a file belongs to, such as `model` or `errors`."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem.replace("__init__", "")


def layer_of(part):
    (number,) = (number for number, parts in enumerate(LAYERS) if part in parts)
    return number


def is_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def top_imports(path):
    """Yield the dotted names that running the module's top level imports."""
    stack = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
        elif isinstance(node, ast.If | ast.Try | ast.With) and not is_type_checking(node):
            stack += ast.iter_child_nodes(node)


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_imports_run_one_way(path):
    own = layer_of(part_of(path))
    for name in top_imports(path):
        if name == "lorafit" or name.startswith("lorafit."):
            part = name.removeprefix("lorafit").removeprefix(".").partition(".")[0]
            assert layer_of(part) <= own, f"{path}: {name}"


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_heavy_libraries_are_imported_where_they_are_needed_only(path):
    part = part_of(path)
    if part in MAY_BE_HEAVY or (part == "memory" and path.stem not in ("__init__", "allocator")):
        return
    heavy = {name.partition(".")[0] for name in top_imports(path)} & HEAVY
    assert not heavy, f"{path} imports {heavy} at its top"


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_only_the_console_prints(path):
    if path == PACKAGE / "cli" / "console.py":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{path}:{node.lineno}"


@pytest.mark.parametrize("what", FORBIDDEN)
def test_nothing_in_the_package_can_run_code_from_a_file(what):
    pattern = re.compile(FORBIDDEN[what])
    found = [
        f"{path}:{number}"
        for path in MODULES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line) and (what, path) != THE_PERSONS_OWN
    ]
    assert not found


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("pickle", "import pickle"), ("torch.load", "torch.load(path)"), ("eval", "x = eval(text)"),
        ("yaml.load", "yaml.load(text, Loader)"), ("exec", "exec(code)"),
        ("shell", "run(x, shell=True)"), ("remote code", "f(trust_remote_code=True)"),
        ("archives", "tar.extractall()"), ("os.system", "os.system('x')"),
    ],
)  # fmt: skip
def test_the_patterns_above_find_what_they_are_for(what, line):
    assert re.search(FORBIDDEN[what], line)


def test_every_command_has_a_module_with_a_command_or_a_group():
    for entry in COMMANDS:
        spec = importlib.util.find_spec(f"lorafit.cli.{entry.module}")
        assert spec is not None, entry
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        names = {
            target.id
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        assert "command" in functions or "app" in names, entry


def public_definitions(tree):
    """Yield public functions, classes and methods; what is inside a function is private."""
    stack = [tree]
    while stack:
        for node in stack.pop().body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                if node.name.startswith("_"):
                    continue
                yield node
                if isinstance(node, ast.ClassDef):
                    stack.append(node)


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_everything_public_says_what_it_is_for(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if tree.body:
        assert ast.get_docstring(tree), f"{path} has no docstring"
    for node in public_definitions(tree):
        # The stubs of a protocol and callbacks of a library are documented where they belong.
        is_stub = isinstance(node.body[-1], ast.Expr) and ast.unparse(node.body[-1]) == "..."
        is_callback = node.name.startswith("on_") and "control" in ast.unparse(node)
        if not is_stub and not is_callback:
            assert ast.get_docstring(node), f"{path}:{node.lineno} {node.name}"
