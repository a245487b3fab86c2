"""Configurations of other tools, read and rewritten as settings of lorafit."""
