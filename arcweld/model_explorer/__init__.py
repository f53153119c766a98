"""The extension of Google's Model Explorer that opens engine files: ``--extensions=arcweld.model_explorer``."""
