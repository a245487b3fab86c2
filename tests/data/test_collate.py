import torch

from lorafit.data.collate import Collator

ROWS = [
    {"input_ids": [5, 6, 0], "labels": [-100, 6, 0]},
    {"input_ids": [7, 0], "labels": [7, 0]},
]


def test_pads_on_the_right_by_position():
    batch = Collator(pad_token_id=9)(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 0], [7, 0, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 0], [7, 0, -100]]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_keeps_a_true_end_of_text_where_padding_has_the_same_id():
    batch = Collator(pad_token_id=0)(ROWS)
    assert batch["input_ids"][1].tolist() == [7, 0, 0]
    assert batch["attention_mask"][1].tolist() == [1, 1, 0]
    assert batch["labels"][1].tolist() == [7, 0, -100]


def test_rounds_lengths_up_and_pads_to_a_fixed_length():
    assert Collator(0, pad_to_multiple_of=8)(ROWS)["input_ids"].shape == (2, 8)
    assert Collator(0, fixed_length=12)(ROWS)["labels"].shape == (2, 12)
    assert Collator(0, pad_to_multiple_of=8).padded_length(16) == 16
