import torch

from lorafit.data.collate import Collator, EndToEndCollator

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
    assert Collator(0, lengths=(2, 12, 20))(ROWS)["labels"].shape == (2, 12)
    assert Collator(0, pad_to_multiple_of=8, lengths=(4, 12)).padded_length(13) == 16
    assert Collator(0, pad_to_multiple_of=8).padded_length(16) == 16


# -- End to end ----------------------------------------------------------------------------


def test_rows_go_end_to_end_with_positions_from_zero():
    rows = [{"input_ids": [5, 6, 8, 0], "labels": [-100, 6, 8, 0]}, ROWS[0]]
    batch = EndToEndCollator(9, longest=20, by_document=True)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 8, 5, 6]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["document_lengths"] == (3, 2)
    assert batch["cu_seq_lens_q"].tolist() == [0, 3, 5]
    assert batch["cu_seq_lens_q"].dtype == batch["cu_seq_lens_k"].dtype == torch.int32
    assert batch["max_length_q"] == batch["max_length_k"] == 20


def test_the_last_token_of_a_row_does_not_predict_the_next_row():
    rows = [{"input_ids": [1, 2], "labels": [1, 2]}, {"input_ids": [3, 4], "labels": [3, 4]}]
    batch = EndToEndCollator(0, longest=2)(rows)
    assert batch["input_ids"].tolist() == [[1, 3]]
    assert batch["target_positions"].tolist() == [0, 1]
    assert batch["targets"].tolist() == [2, 4]
    assert "document_lengths" not in batch


def test_tokens_behind_the_last_target_of_a_row_are_left_out():
    rows = [
        {"input_ids": [1, 2, 3, 4, 5, 6], "labels": [-100, 2, -100, 4, -100, -100]},
        {"input_ids": [7, 8], "labels": [-100, -100]},
        {"input_ids": [9], "labels": [9]},
    ]
    batch = EndToEndCollator(0, longest=6, by_document=True)(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 7, 9]]
    assert batch["document_lengths"] == (3, 1, 1)
    assert batch["target_positions"].tolist() == [0, 2]
    assert batch["targets"].tolist() == [2, 4]


def test_targets_are_those_of_the_padded_batch():
    padded = Collator(0, locate_targets=True)(ROWS)
    assert EndToEndCollator(0, 8)(ROWS)["targets"].tolist() == padded["targets"].tolist()


def test_rounding_up_adds_a_document_without_targets():
    plain = EndToEndCollator(9, 4, by_document=True)(ROWS)
    batch = EndToEndCollator(9, 4, pad_to_multiple_of=16, by_document=True)(ROWS)
    num_tokens = plain["input_ids"].shape[1]
    missing = 16 - num_tokens
    assert batch["input_ids"].shape == batch["position_ids"].shape == (1, 16)
    assert batch["input_ids"][0, num_tokens:].tolist() == [9] * missing
    assert batch["position_ids"][0, num_tokens:].tolist() == list(range(missing))
    assert batch["document_lengths"] == (*plain["document_lengths"], missing)
    assert batch["max_length_q"] == max(batch["document_lengths"])
    assert batch["target_positions"].equal(plain["target_positions"])
