"""The command ``onnx-to-engine``: ``main`` in app.py, and a module for each group of subcommands."""
