"""One module per fusion. `fusion/interface.py` says what a fusion is, and `docs/extending.md` how to add one."""
