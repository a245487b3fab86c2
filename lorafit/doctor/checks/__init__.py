"""The checks, by group; importing this package registers them in the order of the report."""

import importlib

for _group in ("python", "packages", "devices", "system", "configuration"):
    importlib.import_module(f"{__name__}.{_group}")
