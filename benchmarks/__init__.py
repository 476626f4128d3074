"""Measurements and checks: `python -m benchmarks NAME --help`. Results of `matching` are in RESULTS.md."""
