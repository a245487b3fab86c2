"""Learning from rewards (GRPO) and from preferences (DPO), on TRL's trainers."""
