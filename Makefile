# Two commands for a newcomer: `make quickstart` and `make test`. Both begin with `make setup`, which does nothing twice.
VENV := .venv
BIN := $(VENV)/bin
# The Python of .venv, once there is one. Another PYTHON makes .venv again: make test PYTHON=python3.12
PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)
VERSION := import sys; print(sys.version.split()[0])
WANTED := $(shell $(PYTHON) -c '$(VERSION)')
STAMP := $(VENV)/.installed-$(WANTED)

.PHONY: triton test-triton setup quickstart test test-slow test-faults test-torch test-gpu test-s3 test-postgres test-browser databases nightly-demo lint style fetch fetch-data fetch-decoder lock schema prefect-schema mlflow-schema clean

setup: $(STAMP)

$(STAMP): pyproject.toml requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11, 3.12 or 3.13 is needed, this is " + sys.version.split()[0])'
	@test "$$($(BIN)/python -c '$(VERSION)' 2>/dev/null)" = "$(WANTED)" || \
	  { echo "making $(VENV) with Python $(WANTED)"; $(PYTHON) -m venv --clear $(VENV); }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/python -m compileall -q engineworks flows tasks
	@touch $(STAMP)

quickstart: setup
	$(BIN)/engineworks build recipes/digits.yaml

# Types are checked while the tests run: in a fresh clone mypy keeps one processor busy for a minute.
test: setup style
	@said=$$(mktemp); $(BIN)/mypy > $$said 2>&1 & types=$$!; $(BIN)/python -m pytest -n 2 --dist loadgroup; tests=$$?; \
	  wait $$types; types=$$?; echo mypy; cat $$said; rm $$said; exit $$((types + tests))

# Gigabytes and minutes.
test-slow: setup
	$(BIN)/python -m pytest -m slow

# Processes killed, runs cancelled, servers restarted, under a Prefect server with its workers: a quarter of an hour.
test-faults: setup
	$(BIN)/python -m pytest -m faults

# PyTorch and transformers are installed first: several gigabytes with CUDA, unless torch is there already.
test-torch: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[huggingface]'
	$(BIN)/python -m pytest -m torch

test-gpu: setup
	$(BIN)/python -m pytest -m gpu

# NVIDIA's Triton server with its Python backend, in a folder of its own: the wheel (55 MB) pins an older NumPy.
triton: setup .triton/.installed

.triton/.installed:
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .triton nvidia-pytriton==0.7.0
	@touch $@

# Packages on that server, or on the one that ENGINEWORKS_TRITON names.
test-triton: triton
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[serving]'
	$(BIN)/python -m pytest -m triton

# The store on S3, by moto's server on loopback.
test-s3: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[s3-tests]'
	$(BIN)/python -m pytest -m s3

# Prefect and MLflow on PostgreSQL, started in a temporary folder. Needs Debian's package `postgresql`.
test-postgres: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[postgres]'
	$(BIN)/python -m pytest -m postgres

# The report in a real browser. Needs Debian's packages `chromium` and `chromium-driver`.
test-browser: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[browser-tests]'
	$(BIN)/python -m pytest -m browser

# PostgreSQL for Prefect and MLflow on loopback, until Ctrl-C; prints the variables that name its databases.
databases:
	@$(PYTHON) benchmarks/databases.py artifacts/postgres --port 5433

# Two nights with PostgreSQL (SQLite where it is not installed), Prefect's and MLflow's servers, moto's S3 and three
# workers, all on loopback and stopped again. Installs moto, s3fs and psycopg2 first. Some three minutes.
nightly-demo: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[s3-tests,postgres]'
	$(BIN)/python benchmarks/nightly_demo.py

lint: style
	$(BIN)/mypy

style: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell

# Models and data of the examples that are too large for git; fetch-data leaves out what needs PyTorch.
fetch: fetch-data fetch-decoder

fetch-data: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[examples]'
	$(BIN)/python recipes/fetch/fashion.py
	$(BIN)/python recipes/fetch/digits_images.py
	$(BIN)/python recipes/fetch/minilm.py
	$(BIN)/python recipes/fetch/ocr_detection.py
	$(BIN)/python recipes/fetch/ocr_recognition.py
	$(BIN)/python recipes/fetch/speed.py

# SmolLM2. PyTorch is installed first: several gigabytes with CUDA, unless it is there already.
fetch-decoder: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[decoder-example]'
	$(BIN)/python recipes/fetch/smollm2.py

# Needs uv; run it after a change of the dependencies.
lock:
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-annotate --no-strip-extras --no-emit-index-url --no-emit-find-links --output-file requirements.txt

schema: setup
	$(BIN)/engineworks validate --schema > recipes/recipe.schema.json

# What Prefect's migrations make of an empty database, after an upgrade of Prefect.
prefect-schema: setup
	$(BIN)/python -P flows/local_prefect_server.py --write-schema flows/local_prefect_schema.sql

# The same of MLflow's.
mlflow-schema: setup
	$(BIN)/python -c "from engineworks.tracking.sqlite import write_schema; write_schema()"

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
