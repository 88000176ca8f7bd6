"""One module per optimizer. `docs/extending.md` says how to add one."""
