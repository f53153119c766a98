"""Graph to graph transformations, one file a pass; pipeline.py holds the one list that orders them."""
