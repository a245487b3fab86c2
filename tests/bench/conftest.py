"""The benchmark's modules import each other as scripts of one folder do."""

import sys

from tiny import ROOT

sys.path.insert(0, str(ROOT / "bench"))
