# make install | quickstart | test | check | explorer | check-explorer
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install quickstart test check explorer check-explorer format clean

install: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $(STAMP)

quickstart: $(STAMP)
	$(BIN)/echostill run --config examples/quickstart/config.yaml

test: $(STAMP)
	$(BIN)/python -m pytest

# mypy reads the package as a user gets it: built and installed beside, not the source folders.
check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/site .
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
