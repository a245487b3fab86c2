"""mkdocs hooks: files outside of docs/ that a page links to become part of the site.

A link such as `../bench/results/x.md` works in the repository. On the site the file lies under
`project/`, as a page if it is Markdown, and links in it are followed in the same way.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PREFIX = "project"
_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: Any) -> Files:
    """Add every file outside of docs/ that a page links to, directly or through another."""
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    seen = set(waiting)
    while waiting:
        for target in _outside_links(waiting.pop()) - seen:
            seen.add(target)
            copy = f"{PREFIX}/{target}"
            files.append(File.generated(config, copy, abs_src_path=str(ROOT / target)))
            if target.endswith(".md"):
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links that leave docs/ into links to the copies under `project/`."""
    uri = page.file.src_uri
    inside = uri.startswith(f"{PREFIX}/")
    path = uri.removeprefix(f"{PREFIX}/") if inside else f"docs/{uri}"

    def turn(match: re.Match[str]) -> str:
        target = _resolved(path, match[2])
        if target is None:
            return match[0]
        if target.startswith("docs/"):
            new = target.removeprefix("docs/")
        elif (ROOT / target).is_file():
            new = f"{PREFIX}/{target}"
        elif (ROOT / target / "README.md").is_file():
            new = f"{PREFIX}/{target}/README.md"
        else:
            # A folder: there is nothing on the site to go to.
            return match[0].replace(match[2], "#").replace("##", "#")
        return match[1] + posixpath.relpath(new, posixpath.dirname(uri) or ".") + match[3]

    return _LINK.sub(turn, markdown)


def _outside_links(path: str) -> set[str]:
    found = set()
    for _, link, _ in _LINK.findall((ROOT / path).read_text(encoding="utf-8")):
        target = _resolved(path, link)
        if target is None or target.startswith("docs/"):
            continue
        if (ROOT / target).is_dir() and (ROOT / target / "README.md").is_file():
            target = f"{target}/README.md"
        if (ROOT / target).is_file():
            found.add(target)
    return found


def _resolved(path: str, link: str) -> str | None:
    """Return where a relative link leads, from the project's root; None for others."""
    if re.match(r"[a-z]+:|/", link):
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    return None if target.startswith("..") else target
