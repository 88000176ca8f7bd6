"""One module per source of networks. `docs/extending.md` says how to add one."""
