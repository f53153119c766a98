"""Scripts that show by themselves what a search found: each is copied into the folder that the search leaves."""
