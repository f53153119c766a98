"""Model builders that work offline, the benchmark suite and the demo."""
