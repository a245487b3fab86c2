"""`lorafit chat`: talk to a model, with its adapter on or off."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorafit.cli import console
from lorafit.cli.inference import resolve_inference
from lorafit.cli.options import (
    AdapterInsteadOfRun,
    MaxNewTokens,
    OptionalRun,
    Temperature,
    TopP,
    flags_of,
    refuse_empty,
)
from lorafit.cli.settings_flags import RunChoices
from lorafit.errors import UsageError
from lorafit.text import excerpt, nearest, visible_text

if TYPE_CHECKING:
    from lorafit.config.schema import Settings
    from lorafit.evaluation.conversation import Conversation
    from lorafit.evaluation.generation import Sampling
    from lorafit.evaluation.loading import LoadedModel

HELP = (
    "/adapter on|off  answer with or without the adapter\n"
    "/reset           forget the conversation\n"
    "/quit            leave (so does Ctrl-D)"
)
_WORDS = ("/adapter", "/reset", "/quit", "/help")


def command(
    run: OptionalRun = None,
    adapter: AdapterInsteadOfRun = None,
    model: Annotated[
        str | None, typer.Option(help="Base or merged model, if not the run's.", metavar="TEXT")
    ] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(help="chatml, or a .jinja file; the run's if left out.", metavar="NAME|FILE"),
    ] = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    device: Annotated[
        str | None, typer.Option(help="cuda, mps, cpu, cuda:1; auto.", metavar="NAME")
    ] = None,
) -> None:
    """Talk to a model; answers appear as they are written. Lines may also come from a pipe.

    Examples:
      lorafit chat outputs/first

      lorafit chat --model outputs/first/merged

      echo "Why is the sky blue?" | lorafit chat outputs/first
    """
    folder = _adapter_of(run, adapter, model)
    flags = flags_of(model=model, chat_template=chat_template, device=device)
    resolved, found, path = resolve_inference(RunChoices(flags=flags), folder)
    from lorafit.evaluation.generation import Sampling
    from lorafit.evaluation.loading import load_for_inference

    loaded = load_for_inference(resolved.settings, found, path)
    import torch

    torch.manual_seed(resolved.settings.seed)
    chat = _Chat(
        loaded,
        _conversation(resolved.settings, loaded, path),
        Sampling(max_new_tokens, temperature, top_p),
        has_adapter=path is not None,
    )
    chat.greet()
    chat.run()


def _adapter_of(run: str | None, adapter: str | None, model: str | None) -> str | None:
    given = {"RUN": run, "--adapter": adapter, "--model": model}
    refuse_empty(given, hint="lorafit chat outputs/first")
    if run is not None and adapter is not None:
        raise UsageError("RUN and --adapter are both given", hint="name one of the two")
    if run is None and adapter is None and model is None:
        raise UsageError(
            "there is nothing to talk to", hint="lorafit chat RUN, or lorafit chat --model NAME"
        )
    return adapter if run is None else str(Path(run) / "adapter")


def _conversation(
    settings: "Settings", loaded: "LoadedModel", adapter: Path | None
) -> "Conversation":
    """Return how turns are written: as the run's rows were, or by the model's own template."""
    from lorafit.data.chat import load_chat_format
    from lorafit.evaluation.conversation import Conversation
    from lorafit.export.plan import recorded_run, row_kind_of

    kind = row_kind_of(recorded_run(adapter)) if adapter is not None else None
    has_template = settings.chat_template or getattr(loaded.tokenizer, "chat_template", None)
    is_chat = kind == "messages" or (kind is None and bool(has_template))
    if not (is_chat or settings.chat_template):
        return Conversation(None, kind)
    return Conversation(load_chat_format(settings, loaded.tokenizer), kind)


class _Chat:
    def __init__(
        self,
        loaded: "LoadedModel",
        conversation: "Conversation",
        sampling: "Sampling",
        *,
        has_adapter: bool,
    ) -> None:
        self._loaded = loaded
        self._conversation = conversation
        self._sampling = sampling
        self._has_adapter = has_adapter
        self._is_on = has_adapter
        self._is_terminal = sys.stdin.isatty()

    def greet(self) -> None:
        """Say how turns are written and what can be typed."""
        console.say(self._conversation.form.reason)
        if self._is_terminal:
            console.say(HELP)

    def run(self) -> None:
        """Answer line after line until there are no more."""
        for line in self._lines():
            said = line.strip()
            if said == "/quit":
                return
            if said.startswith("/"):
                self._obey(said)
            elif said:
                self._answer(said)

    def _lines(self) -> Iterator[str]:
        while True:
            if self._is_terminal:
                console.prompt("> " if self._is_on or not self._has_adapter else "base> ")
            try:
                line = sys.stdin.readline()
            except KeyboardInterrupt:
                # Nothing is half done while a line is awaited: leaving is all that can be meant.
                console.say()
                return
            except UnicodeDecodeError:
                raise UsageError("stdin is not UTF-8", hint="send text in UTF-8") from None
            if not line:
                return
            yield line

    def _obey(self, said: str) -> None:
        word, _, rest = said.partition(" ")
        if word == "/reset" and not rest:
            self._conversation.reset()
            console.say("the conversation begins anew")
        elif word == "/adapter" and rest.strip() in ("on", "off"):
            self._switch(rest.strip() == "on")
        elif word == "/help":
            console.say(HELP)
        else:
            near = nearest(word, _WORDS)
            console.say(f"{excerpt(said, 40)} is not known here; {near or '/help'} is:\n{HELP}")

    def _switch(self, is_on: bool) -> None:
        if not self._has_adapter:
            console.say("there is no adapter here: this is a model alone")
            return
        self._is_on = is_on
        console.say(f"the adapter is {'on' if is_on else 'off: the base model answers'}")

    def _answer(self, said: str) -> None:
        from lorafit.data.templates import RowError
        from lorafit.evaluation.conversation import stream_answer

        try:
            prompt = self._conversation.prompt(said)
        except RowError as problem:
            console.warn(str(problem))
            return
        with self._adapter():
            answer = stream_answer(self._loaded, prompt, self._sampling, _show)
        console.write("\n")
        self._conversation.add(said, answer)

    def _adapter(self) -> contextlib.AbstractContextManager[object]:
        if self._is_on or not self._has_adapter:
            return contextlib.nullcontext()
        disabled: contextlib.AbstractContextManager[object] = self._loaded.model.disable_adapter()  # type: ignore[operator]  # PEFT's
        return disabled


def _show(piece: str) -> None:
    console.write(visible_text(piece) if sys.stdout.isatty() else piece)
