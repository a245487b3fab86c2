"""Imported by the fork server after the libraries: what every command would otherwise do anew.

It changes no result: a table of transformers is built once, and what the imports left in memory is
kept out of the commands' garbage collection, which would have to look through and copy all of it.
"""

import gc

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

get_checkpoint_conversion_mapping("phi")
gc.collect()
gc.freeze()
