"""How good a model is on a data set: loss, and right answers where rows have labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lorafit.config.schema import Settings
from lorafit.data.chat import ChatFormat, load_chat_format
from lorafit.data.dataset import TokenizedDataset
from lorafit.data.records import Record
from lorafit.data.templates import render_prompt
from lorafit.errors import DataError
from lorafit.evaluation.classification import (
    ClassificationReport,
    classification_report,
    read_answer,
)
from lorafit.evaluation.generation import Sampling, generate_texts
from lorafit.evaluation.loading import LoadedModel
from lorafit.evaluation.loss import LossReport, evaluate_loss

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Answer:
    """What the model wrote for one labelled row."""

    prompt: str
    text: str
    label: str
    predicted: str | None
    ends_in_label: bool = False
    """Whether the text ends in a label, so that whatever was reasoned led to one."""
    is_bare: bool = False
    """Whether the text is a label without any reasoning."""


@dataclass(frozen=True)
class Evaluation:
    """Loss over all rows; answers and their classification where rows have labels."""

    loss: LossReport
    classification: ClassificationReport | None
    answers: tuple[Answer, ...]

    @property
    def ends_in_label(self) -> float:
        """Share of answers that end in a label."""
        return sum(answer.ends_in_label for answer in self.answers) / max(1, len(self.answers))

    @property
    def bare_labels(self) -> float:
        """Share of answers that are a label and nothing else."""
        return sum(answer.is_bare for answer in self.answers) / max(1, len(self.answers))


def evaluate_dataset(
    loaded: LoadedModel,
    dataset: TokenizedDataset,
    *,
    settings: Settings,
    labelled: bool,
    batch_size: int,
    max_new_tokens: int,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a model on tokenized rows; `labelled` rows are answered by greedy generation."""

    def report(stage: str) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, total: progress(stage, done, total)

    collate, limits = loaded.batches(batch_size, max(dataset.lengths, default=1))
    loss = evaluate_loss(loaded.model, dataset, collate, limits, loaded.device, report("loss"))
    if not labelled:
        return Evaluation(loss, None, ())
    answers = answer_records(
        loaded, dataset.records, settings, batch_size, max_new_tokens, report("answers")
    )
    classification = classification_report(
        [answer.label for answer in answers], [answer.predicted for answer in answers]
    )
    return Evaluation(loss, classification, answers)


def answer_records(
    loaded: LoadedModel,
    records: Sequence[Record],
    settings: Settings,
    batch_size: int,
    max_new_tokens: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Answer, ...]:
    """Let the model answer the prompt of every record, and read the label off each answer.

    Raises:
        DataError: a record has no prompt to answer.
    """
    labels = sorted({record.label for record in records if record.label is not None})
    is_chat = any(record.messages is not None for record in records)
    chat = load_chat_format(settings, loaded.tokenizer) if is_chat else None
    prompts = [prompt_of(record, chat) for record in records]
    texts = generate_texts(
        loaded.model,
        loaded.tokenizer,
        prompts,
        Sampling(max_new_tokens=max_new_tokens),
        pad_token_id=loaded.pad.token_id,
        batch_size=batch_size,
        progress=progress,
    )
    return tuple(
        Answer(prompt, text.strip(), str(record.label), *read_answer(text, labels))
        for prompt, text, record in zip(prompts, texts, records, strict=True)
    )


def prompt_of(record: Record, chat: ChatFormat | None) -> str:
    """Return what a model is given to answer a record; of messages, all but the last.

    Raises:
        DataError: the record is plain text, without a prompt.
    """
    if record.messages is not None and chat is not None:
        return chat.render_prompt(record.messages[:-1])
    if record.prompt is None:
        raise DataError(
            "this row is plain text with a label, so there is no prompt to answer",
            where=record.source,
            hint="set --prompt-template and --completion-template",
        )
    return render_prompt(record.prompt)
