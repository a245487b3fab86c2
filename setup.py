"""Ship presets/ inside the wheel as lorafit/presets; all else is in pyproject.toml.

In a checkout, and in an editable install of one, lorafit reads presets/ where it lies.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithPresets(build_py):
    """The usual build, and the preset files."""

    def run(self) -> None:
        """Build the package, then copy the presets into it."""
        super().run()
        if self.editable_mode:
            return
        source = Path(__file__).parent / "presets"
        target = Path(self.build_lib) / "lorafit" / "presets"
        for preset in sorted(source.rglob("*.yaml")):
            copy = target / preset.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(preset, copy)


setup(cmdclass={"build_py": BuildWithPresets})
