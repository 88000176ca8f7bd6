"""One module per schedule of the learning rate."""
