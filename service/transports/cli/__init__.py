"""Commands that a person or a container runs: the demo, a question, the health check."""
