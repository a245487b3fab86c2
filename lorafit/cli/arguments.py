"""The words of a command line, looked at before any of them is parsed, used or repeated."""

from collections.abc import Iterator, Sequence

from lorafit.errors import LorafitError, StorageError, UsageError
from lorafit.text import escape_control, excerpt, holds_secret, is_unicode

# Options whose values are text for a model, in which anything may stand.
_FREE_TEXT = frozenset({"--prompt"})
_FOLDERS = frozenset({"--output-dir", "--checkpoint-dir"})


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse secrets, and words that are no text: no message may repeat either as it is.

    Raises:
        UsageError: a word holds a token or password, or bytes that are not UTF-8.
        StorageError: the output folder's name is not UTF-8.
    """
    for flag, word in _with_flags(arguments):
        if not is_unicode(word):
            raise _not_text(flag, word)
        if word.startswith("-") and not flag and escape_control(word) != word:
            raise UsageError(f"'{excerpt(word)}' is not an option", where="argument")
        if holds_secret(word) and flag not in _FREE_TEXT:
            raise UsageError(
                "the value looks like a token or holds a password, which would end up in records",
                where=f"flag {flag}" if flag else "argument",
                hint="log in with `hf auth login`, or set HF_TOKEN; give the name without it",
            )


def _with_flags(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield every word with the flag that it most likely belongs to, or with an empty one."""
    before = ""
    for word in arguments:
        name, equals, value = word.partition("=")
        if not word.startswith("--"):
            yield before, word
            before = ""
        elif equals:
            yield _flag(name), value
            yield "", name
            before = ""
        else:
            yield "", word
            before = _flag(word)


def _flag(name: str) -> str:
    # An option that is itself the secret is not to be repeated.
    return "" if holds_secret(name) or not is_unicode(name) else name.replace("_", "-")


def _not_text(flag: str, word: str) -> LorafitError:
    kind = StorageError if flag in _FOLDERS else UsageError
    return kind(
        f"'{excerpt(word)}' is not UTF-8, so it could not be recorded with the run",
        where=f"flag {flag}" if flag else "argument",
        hint="rename it: letters of any language, spaces and emoji are fine",
    )
