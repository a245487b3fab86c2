"""What the tests of the documents share: pages, links and the commands that stand in them."""

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from tiny import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *DOCS.rglob("*.md"),
        *(ROOT / "bench").rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
    ]
)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Line(NamedTuple):
    """A shell command of a document."""

    page: str
    text: str


def load_script(name: str) -> ModuleType:
    """Import a script of docs/ as a module, with its neighbours within reach."""
    if str(DOCS) not in sys.path:
        sys.path.insert(0, str(DOCS))
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def without_code(text: str) -> str:
    """Return a page without code: what looks like a link or heading there is none."""
    return re.sub(r"`[^`\n]*`", "``", _FENCE.sub("", text))


def inline_commands_of(path: Path) -> Iterator[Line]:
    """Yield the `lorafit` commands within sentences and tables, each once a page."""
    text = _FENCE.sub("", path.read_text(encoding="utf-8"))
    for command in dict.fromkeys(re.findall(r"`(lorafit \S[^`]*)`", text)):
        yield Line(str(path.relative_to(ROOT)), " ".join(command.split()).replace("\\|", "|"))


def commands_of(path: Path) -> Iterator[Line]:
    """Yield the commands of shell blocks, and the indented ones; comments are cut off."""
    text = re.sub(r"\\\n\s*", " ", path.read_text(encoding="utf-8"))
    blocks = [body for language, body in _FENCE.findall(text) if language == "bash"]
    indented = re.findall(r"^ {4}(\S.*)$", _FENCE.sub("", text), re.MULTILINE)
    for line in [*"".join(blocks).splitlines(), *indented]:
        for part in re.sub(r"\s+#.*", "", line).split(" && "):
            if part.strip():
                yield Line(str(path.relative_to(ROOT)), part.strip())
