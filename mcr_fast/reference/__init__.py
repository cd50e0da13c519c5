"""Plain-torch references, one file for each op: the truth that tests and benchmarks import."""
