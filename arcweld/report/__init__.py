"""The report on an engine or a model: one HTML file with what is known and what is modelled of it."""
