"""One module per augmentation. `docs/extending.md` says how to add one."""
