"""Scripts of docs/ import each other as they do when they are run: from their own folder."""

import sys
from pathlib import Path

DOCS = str(Path(__file__).resolve().parents[2] / "docs")
if DOCS not in sys.path:
    sys.path.insert(0, DOCS)
