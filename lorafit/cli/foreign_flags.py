"""Flags of other tools: what `--lr` or `--bf16` is called here, said instead of a near spelling."""

from collections.abc import Mapping, Sequence
from typing import Any

from typer.core import TyperCommand

from lorafit.errors import UsageError

_A_SETTING = "--learning-rate"
"""Commands that have this flag have one for every setting."""
_ELSEWHERE = {"config_file": "config", "resume_from_checkpoint": "resume"}
"""Flags that are no settings; all others follow from the names of settings files."""


class HintingCommand(TyperCommand):
    """A command that knows what flags of transformers, TRL, Axolotl and LLaMA-Factory mean."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of the command.

        Raises:
            UsageError: one of them is a flag of another tool; the hint names the one here.
        """
        if any(_A_SETTING in option.opts for option in self.params):
            self._refuse_foreign(args)
        return super().parse_args(ctx, args)

    def _refuse_foreign(self, args: Sequence[str]) -> None:
        options = {
            flag: option
            for option in self.params
            for flag in (*option.opts, *option.secondary_opts)
        }
        words = iter(args)
        for word in words:
            if word == "--":
                return
            flag, equals, _ = word.partition("=")
            if flag in options:
                # The next word is its value, whatever it looks like.
                if not equals and not getattr(options[flag], "is_flag", False):
                    next(words, None)
            elif flag.startswith("--") and (hint := _hint(flag, options)) is not None:
                raise UsageError(f"lorafit {self.name} has no flag {flag}", hint=hint)


def _hint(flag: str, known: Mapping[str, Any]) -> str | None:
    """Return what to type instead of a flag; None where no other tool has it."""
    from lorafit.config.foreign import HF_RULES
    from lorafit.config.names import USUAL_NAMES
    from lorafit.config.outcomes import Carried

    name = flag[2:].replace("-", "_")
    if name in _ELSEWHERE and f"--{_ELSEWHERE[name]}" in known:
        return f"here it is --{_ELSEWHERE[name]}"
    if name in HF_RULES:
        outcome = HF_RULES[name](True)
        if isinstance(outcome, Carried):
            return _named(outcome.setting, outcome.value, known)
        setting, is_a_choice, choices = outcome.reason.partition(" is one of ")
        if is_a_choice:
            return _named(setting, choices.replace(", ", "|"), known)
        return f"leave it out: {outcome.reason}"
    return _named(USUAL_NAMES[name], True, known) if name in USUAL_NAMES else None


def _named(setting: str, value: object, known: Mapping[str, Any]) -> str | None:
    flag = f"--{setting.replace('_', '-')}"
    if flag not in known:
        return None
    return f"here it is {flag}" if value is True else f"here it is {flag} {value}"
