"""The graph: IR, operator registry, importers, the driver, the command line and the torch backend."""
