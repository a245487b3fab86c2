"""Other projects that fine-tune with LoRA, trained on the same work and measured the same way."""
