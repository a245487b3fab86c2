"""A checkpoint of transformers' Trainer and PEFT, taken over by a run."""
