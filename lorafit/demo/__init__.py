"""The embedded default: a tiny Phi that is pre-trained on the spot, and a data set to tune it on.

Nothing here needs a network or a GPU. `vocabulary` holds the words; `rules` makes problems of
natural-language inference from them, and `nli` the data set of such problems; `corpus` makes the
plain text that `pretrain` trains the base model on; `recipe` holds the LoRA settings that teach
that model the task.
"""
