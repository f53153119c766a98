"""From a user's model to a verified engine: what ties importers, passes, code generation and the runtime together."""
