"""How long a run takes: from the speed of earlier runs, else by arithmetic."""
