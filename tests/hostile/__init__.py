"""Hostile input is refused before the work, and harms nobody else."""
