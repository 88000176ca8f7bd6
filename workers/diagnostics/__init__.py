"""Follow a training from outside, and inject faults into it in tests."""
