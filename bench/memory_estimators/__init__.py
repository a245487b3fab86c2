"""Other projects' memory estimators, each asked in an environment of its own.

The modules named after an estimator run inside that environment and import it; `runs` is the
standard library alone, so that it works in all of them.
"""
