"""The wheel has to bring the presets along."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from lorafit.config.groups import list_options
from lorafit.config.presets import preset_names

ROOT = Path(__file__).parents[2]


def test_the_wheel_holds_every_preset(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    (source / "README.md").write_text("for a test\n")
    shutil.copytree(ROOT / "presets", source / "presets")
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "lorafit", source / "lorafit", ignore=skipped)
    program = f"from setuptools.build_meta import build_wheel\nbuild_wheel({str(tmp_path)!r})"
    build = subprocess.run(
        [sys.executable, "-c", program], cwd=source, capture_output=True, text=True
    )
    assert build.returncode == 0, build.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"lorafit/presets/{name}.yaml" for name in preset_names()} <= names
    options = {f"lorafit/presets/groups/{o.group}/{o.name}.yaml" for o in list_options()}
    assert options
    assert options <= names
    assert "lorafit/py.typed" in names
    assert not any(name.startswith("presets/") for name in names)
