"""The operator registry's entries, one file for each kind of operator."""
