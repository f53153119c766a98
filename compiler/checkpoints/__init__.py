"""Readers of checkpoints: where each tensor of a published model lies in its files, and in which layout."""
