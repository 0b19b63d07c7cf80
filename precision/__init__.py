"""Comparison of a faster type with float32 on a checkpoint, by vectors and rankings."""
