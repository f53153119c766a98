"""From a user's model to a verified engine: it calls importers, passes, code generation and the runtime."""
