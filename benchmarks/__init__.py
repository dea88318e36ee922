"""Benchmarks and simulations: each is run by hand and its result stands in its docstring."""
