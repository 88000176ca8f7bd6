"""Read a data set: sources, archives, decoding, the packed store, splits."""
