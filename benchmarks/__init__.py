"""Measurements and checks: `python -m benchmarks NAME --help`. Results of `matching` and `store` are in RESULTS.md."""
