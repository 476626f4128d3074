"""Measurements of time and memory: `python -m benchmarks NAME --help`. Results are in RESULTS.md."""
