# make install | quickstart | test-fast | test | test-lowest | check | hooks | constraints | explorer
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := python -m pip --disable-pip-version-check
FAST := -m "not ray and not slow and not browser"
# A process per core; Ray and the browser want the machine for themselves.
PARALLEL := -n logical
LOWEST ?= build/lowest
LOWEST_RAY := tests/platform/test_ray_tasks.py tests/platform/shards/test_stage.py tests/platform/training/test_ray.py \
	tests/curation/ingestion/test_stage.py tests/curation/scoring/test_stage.py

.PHONY: install constraints hooks quickstart test test-fast test-lowest check explorer \
	check-explorer format clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/$(PIP) install --quiet --constraint constraints.txt -e ".[dev]"
	touch $(STAMP)

# The newest releases that pyproject.toml allows, all pinned. Run `make check test` before they go in.
constraints:
	rm -rf build/newest
	$(PYTHON) -m venv build/newest
	build/newest/bin/$(PIP) install --quiet -e ".[dev,cluster]"
	sed -n '/^#/p' constraints.txt > build/constraints.txt
	build/newest/bin/$(PIP) freeze --exclude-editable >> build/constraints.txt
	mv build/constraints.txt constraints.txt
	rm -rf build/newest

hooks: $(STAMP)
	$(BIN)/pre-commit install

quickstart: $(STAMP)
	$(BIN)/echostill run --config examples/quickstart/config.yaml

test: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL) -m "not ray and not browser"
	$(BIN)/python -m pytest -m "ray or browser"

# The inner loop: no Ray, no browser, nothing that takes seconds.
test-fast: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL) $(FAST)

# The lowest releases that pyproject.toml allows, in an environment of their own.
test-lowest:
	rm -rf $(LOWEST)
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/$(PIP) install --quiet --constraint constraints-lowest.txt -e ".[dev]"
	$(LOWEST)/bin/python -m pytest $(PARALLEL) $(FAST)
	$(LOWEST)/bin/python -m pytest -m "ray and not slow" $(LOWEST_RAY)

# mypy reads the package as a user gets it: built and installed beside, not the source folders.
check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build
	$(BIN)/$(PIP) install --quiet --no-deps --target build/site .
	cd build && MYPYPATH=site ../$(BIN)/mypy --config-file ../pyproject.toml \
		-p echostill.platform -p echostill.curation -p echostill.distill -p echostill.eval -p echostill.jobs

# The explorer's built files ship inside the package; only who changes their sources needs Node.
explorer:
	cd explorer && npm ci --no-fund --no-audit && npm run check && npm run build

check-explorer: explorer
	git diff --exit-code --stat -- curation/service/explorer
	test -z "$$(git status --porcelain -- curation/service/explorer)"

format:
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
