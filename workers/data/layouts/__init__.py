"""One module per layout of a data set. `docs/extending.md` says how to add one."""
