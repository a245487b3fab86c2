"""What is trained on, how it is put into words, and what is kept of it."""

from lorafit.config.settings.declare import Float, Int, SettingsGroup, Text, setting


class DataSettings(SettingsGroup):
    """The settings of the group `Data`."""

    data: Text | None = setting(
        None,
        "training data: a .jsonl, .json, .csv or .parquet file, or a hub data set id",
        preset=False,
    )
    data_split: Text = setting("train", "split to train on, for a hub data set")
    validation_data: Text | None = setting(
        None, "validation file; none: a share of the training data is held out", preset=False
    )
    validation_split: Float = setting(
        0.1, "share of the training data held out for validation; 0: none", ge=0, le=0.5
    )
    prompt_template: Text | None = setting(
        None, "prompt with {field} placeholders, for rows such as {premise} and {hypothesis}"
    )
    completion_template: Text | None = setting(
        None, "completion with {field} placeholders; goes with prompt_template"
    )
    label_field: Text | None = setting(
        None, "field with a row's label, for accuracy and macro-F1; none: `label` if there"
    )
    chat_template: Text | None = setting(
        None, "chat template for messages: chatml, or a .jinja file; none: the tokenizer's own"
    )
    max_length: Int = setting(
        1024,
        "tokens kept of a row, prompt and completion together; longer rows are cut and counted",
        ge=8,
        le=1_048_576,
    )
    train_on_prompt: bool = setting(False, "learn to write the prompt too, not only the completion")
    max_dropped: Float = setting(
        0.1, "largest share of rows that may be dropped for lack of trainable tokens", ge=0, le=1
    )
    dataloader_num_workers: Int = setting(
        0,
        "processes that prepare batches; rows are tokenized before training, so 0 is fast",
        ge=0,
        le=64,
    )
