"""Nothing that is shipped can run code from a file: read off the source itself, call by call."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import ROOT

SOURCES = sorted(
    path for folder in ("lorafit", "docs", "examples") for path in (ROOT / folder).rglob("*.py")
)  # fmt: skip
MODULES = frozenset({"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal",
                     "shelve", "imp", "code", "codeop"})  # fmt: skip
CALLS = {
    "eval": None, "exec": None, "compile": None, "__import__": None,
    "torch.load": None, "torch.jit.load": None, "torch.package.PackageImporter": None,
    "yaml.load": None, "yaml.load_all": None, "yaml.unsafe_load": None, "yaml.full_load": None,
    "os.system": None, "os.popen": None, "tempfile.mktemp": None,
    "runpy.run_path": None, "runpy.run_module": None,
    "shutil.unpack_archive": None, "zipfile.ZipFile": None, "tarfile.open": None,
}  # fmt: skip
METHODS = frozenset({"extractall", "load_module", "exec_module"})
# Reward functions are the person's own code, run where the command line names their file.
THE_PERSONS_OWN = {ROOT / "lorafit/training/rl/rewards.py": ["compile()", "exec()"]}
KEYWORDS = {"shell": False, "trust_remote_code": False, "allow_pickle": False, "weights_only": True}


def dotted(node: ast.expr) -> str:
    """Return `a.b.c` of a name or attribute, an empty string for anything else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _reads_tensors_only(call: ast.Call) -> bool:
    """Return whether a call says `weights_only=True`, which unpickles tensors and plain values."""
    return any(
        word.arg == "weights_only" and isinstance(word.value, ast.Constant) and word.value.value
        for word in call.keywords
    )


def dangers(source: str) -> Iterator[str]:
    """Yield every import, call and keyword in a source that could run what a file says."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = {alias.name.partition(".")[0] for alias in node.names}
            yield from (f"import {name}" for name in sorted(names & MODULES))
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module.partition(".")[0] in MODULES:
                yield f"from {node.module}"
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            if name == "torch.load" and _reads_tensors_only(node):
                continue
            if name in CALLS or name.rpartition(".")[2] in METHODS:
                yield f"{name}()"
            for keyword in node.keywords:
                safe = KEYWORDS.get(keyword.arg or "")
                if safe is None:
                    continue
                is_safe = isinstance(keyword.value, ast.Constant) and keyword.value.value is safe
                if not is_safe:
                    yield f"{name}({keyword.arg}=...)"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_shipped_runs_what_a_file_says(path: Path) -> None:
    found = sorted(dangers(path.read_text(encoding="utf-8")))
    assert found == THE_PERSONS_OWN.get(path, [])


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from joblib import load", "import a, marshal", "torch.load(path)",
        "torch.load(path, weights_only=safe)", "torch.load(path, weights_only=False)",
        "yaml.load(text, Loader=L)", "yaml.unsafe_load(text)", "eval(text)", "exec(code)",
        "subprocess.run(x, shell=True)", "subprocess.run(x, shell=flag)", "os.system(x)",
        "f(trust_remote_code=True)", "f(trust_remote_code=x)", "np.load(p, allow_pickle=True)",
        "tar.extractall()", "shutil.unpack_archive(p)", "loader.exec_module(m)",
        "f(weights_only=False)", "__import__(name)", "zipfile.ZipFile(p)",
    ],
)  # fmt: skip
def test_each_of_these_would_be_found(line: str) -> None:
    assert list(dangers(line))


@pytest.mark.parametrize(
    "line",
    ["model.eval()", "f(trust_remote_code=False)", "re.compile(x)", "yaml.parse(text)",
     "subprocess.run(x, shell=False)", "model.compile()", "safetensors.torch.load_file(p)",
     "torch.load(p, weights_only=True)"],
)  # fmt: skip
def test_what_only_looks_alike_is_no_danger(line: str) -> None:
    assert not list(dangers(line))
