"""Calls of functions in a model's text: how models write them, grammars that force them, and their reading."""
