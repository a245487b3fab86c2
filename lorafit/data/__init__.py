"""Training data, in the order that it flows through these modules.

sources (what was named) -> reading (rows; lines and strict_json below it, hub beside it) ->
records (one kind of example; templates below it) -> chat and tokenize (tokens and labels; encoding
below it) -> columns (in memory or, of a large file, by prepare, in parallel, into store, mapped) ->
dataset -> split -> load (all of it, for a run) -> packing, micro_batches, collate (batches).
statistics, report and inspection count and describe; progress says how far a large file is.
"""
