"""What keeps a run going or ends it well: memory, health, signals, and what an error means."""
