"""The parts of the scaling model: what an image costs, what a pair costs, and how long machines take for many."""
