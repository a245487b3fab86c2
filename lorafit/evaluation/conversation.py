"""A conversation with a model: what is said becomes a prompt as in training, answers stream."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from lorafit.data.chat import ChatFormat
from lorafit.data.encoding import encode_prompt
from lorafit.data.templates import render_instruction, render_prompt
from lorafit.data.turns import Message
from lorafit.evaluation.generation import Sampling
from lorafit.hardware.info import Choice

if TYPE_CHECKING:
    from lorafit.evaluation.loading import LoadedModel


class Conversation:
    """Turns so far, and how the next one is written for the model.

    With a chat template, and with instructions, the model sees every turn so far. Any other model
    was trained on single prompts, so each turn stands alone.
    """

    def __init__(self, chat: ChatFormat | None, row_kind: str | None) -> None:
        self._chat = chat
        self._row_kind = row_kind
        self._turns: list[Message] = []

    @property
    def form(self) -> Choice[bool]:
        """Whether earlier turns are seen, and why."""
        if self._chat is not None:
            return Choice(True, f"turns are written by {self._chat.reason}")
        if self._row_kind == "instruction":
            return Choice(True, "turns are written as instructions, as in training")
        return Choice(False, "the model was trained on single prompts: each line stands alone")

    def prompt(self, said: str) -> str:
        """Return what the model reads to answer `said`.

        Raises:
            RowError: the chat template refuses the conversation.
        """
        if self._chat is not None:
            return self._chat.render_prompt([*self._turns, Message("user", said)])
        if self._row_kind == "instruction":
            return render_prompt("\n\n".join([*self._past(), render_instruction(said, "")]))
        return render_prompt(said)

    def _past(self) -> list[str]:
        pairs = zip(self._turns[::2], self._turns[1::2], strict=True)
        return [render_instruction(user.content, "") + answer.content for user, answer in pairs]

    def add(self, said: str, answer: str) -> None:
        """Remember a turn."""
        self._turns += [Message("user", said), Message("assistant", answer.strip())]

    def reset(self) -> None:
        """Forget every turn."""
        self._turns.clear()


class _Stream:
    """Hands text on as soon as it is whole; a `transformers` streamer.

    A token may be half of a character, so the text of all tokens so far is decoded each time and
    what is new is handed on, up to the last character that more tokens could still change.
    """

    def __init__(self, tokenizer: Any, write: Callable[[str], None], num_prompt: int) -> None:
        self._tokenizer, self._write = tokenizer, write
        self._to_skip = num_prompt
        self._tokens: list[int] = []
        self.text = ""

    def put(self, value: torch.Tensor) -> None:
        """Take new tokens; the first ones are the prompt."""
        tokens = value.flatten().tolist()
        skipped = min(self._to_skip, len(tokens))
        self._to_skip -= skipped
        self._tokens += tokens[skipped:]
        whole = self._decode()
        if not whole.endswith("\N{REPLACEMENT CHARACTER}"):
            self._hand_on(whole)

    def end(self) -> None:
        """Hand on the rest."""
        self._hand_on(self._decode())

    def _decode(self) -> str:
        return str(self._tokenizer.decode(self._tokens, skip_special_tokens=True))

    def _hand_on(self, whole: str) -> None:
        # The white space between prompt and answer is no part of what is shown.
        shown, self.text = self.text.lstrip(), whole
        if new := whole.lstrip()[len(shown) :]:
            self._write(new)


@torch.no_grad()
def stream_answer(
    loaded: "LoadedModel", prompt: str, sampling: Sampling, write: Callable[[str], None]
) -> str:
    """Generate an answer, hand on each piece as it is written, and return the whole.

    Ctrl-C ends the answer: what was written so far is returned.
    """
    from transformers import GenerationConfig

    tokenizer = loaded.tokenizer
    row = encode_prompt(tokenizer, prompt) or [tokenizer.eos_token_id]
    input_ids = torch.tensor([row], device=loaded.device)
    is_sampled = sampling.temperature > 0
    choice = {"temperature": sampling.temperature, "top_p": sampling.top_p} if is_sampled else {}
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=loaded.pad.token_id,
        use_cache=True,
        do_sample=is_sampled,
        **choice,
    )
    stream = _Stream(tokenizer, write, len(row))
    try:
        loaded.model.generate(  # type: ignore[operator]  # transformers' mixin
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            generation_config=config,
            streamer=stream,
        )
    except KeyboardInterrupt:
        stream.end()
    return stream.text
