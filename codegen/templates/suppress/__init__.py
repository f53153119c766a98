"""The suppress template: of the boxes of a row, those that no better one overlaps."""
