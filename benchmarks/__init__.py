"""Benchmarks of ptuning: each prints a table and one JSON line. ``bash scripts/benchmark.sh NAME [options]`` runs one."""
