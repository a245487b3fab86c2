"""The checks, by group; importing this package registers them in the order of the report."""

import importlib

_GROUPS = (
    "python", "packages", "conflicts", "devices", "nvidia", "metal", "fit", "system",
    "filesystem", "environment", "configuration", "network", "model", "data", "runs", "selftest",
)  # fmt: skip

for _group in _GROUPS:
    importlib.import_module(f"{__name__}.{_group}")
