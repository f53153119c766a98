"""Passes: functions from graph to graph, one file for each. ``pipeline.py`` has the one list that orders them."""
