"""Training data, in the order that it flows through these modules.

sources (what was named) -> reading (rows; lines and strict_json below it, hub beside it) ->
records (one kind of example; templates below it) -> chat and tokenize (tokens and labels;
encoding and dataset below it) -> split -> load (all of it, for a run) -> collate (batches).
statistics, report and inspection count and describe; capacity refuses what cannot fit.
"""
