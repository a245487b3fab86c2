"""Adapters on their way out: merged weights, model card, hub, GGUF, Ollama."""
