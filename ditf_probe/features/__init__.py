"""From images to dense features: modulation, the extractor, and the bank of computed streams."""
