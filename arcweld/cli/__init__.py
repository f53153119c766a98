"""The command ``onnx-to-engine``: one file a group of subcommands; ``main`` in app.py."""
