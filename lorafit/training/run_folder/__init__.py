"""The output folder of a run: whose it is, what lies in it, and where in a run it stands."""
