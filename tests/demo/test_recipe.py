"""The demo's settings are valid, and its templates fit its data."""

import json
from pathlib import Path

from lorafit.config.schema import Settings
from lorafit.demo import recipe


def test_settings_validate_against_the_schema() -> None:
    settings = Settings(**recipe.demo_settings(Path("model")))
    assert settings.model == "model"
    assert settings.target_modules is None


def test_templates_use_the_fields_of_the_data_and_end_in_the_label() -> None:
    settings = Settings(**recipe.demo_settings(Path("model")))
    assert settings.data is not None
    row = json.loads(Path(settings.data).read_text(encoding="utf-8").splitlines()[0])
    assert recipe.PROMPT_TEMPLATE.format(**row).endswith("Reasoning:")
    assert recipe.COMPLETION_TEMPLATE.format(**row).split()[-1] == row["label"]
