"""One module per fusion. `fusion/interface.py` defines the interface; `docs/extending.md` shows how to add one."""
