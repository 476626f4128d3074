"""Frozen diffusion transformers behind one contract: images in, the raw residual stream of chosen blocks out."""
