"""The experiments of `docs/experiments.md`: the commands of each, and what is read from what they leave."""
