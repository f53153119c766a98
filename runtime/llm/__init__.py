"""The runtime of language models: pages, scheduling, sampling and the loop that ties them to an engine."""
