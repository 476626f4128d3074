"""Measurements and checks: `python -m benchmarks NAME --help`. Results are in RESULTS.md."""
