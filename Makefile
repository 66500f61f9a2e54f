# Everything is set up in .venv at the root; each target installs what it needs first.
PYTHON ?= python3
BIN := .venv/bin
export PYTHONUTF8 := 1
unexport PYTHONDONTWRITEBYTECODE # each process of the tests would compile everything again

.PHONY: demo test test-all trace check format bench docs setup clean

demo: setup ## train on scikit-learn's digits, test, show the result
	$(BIN)/fewsight demo --out runs/demo-$$(date +%Y%m%d-%H%M%S)

test: check ## format, lint, types, then the tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m "not slow"

test-all: check ## the slow ones too: full-size backbones, kills, resumes
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

trace: setup ## digests of six small trainings: equal before and after a refactor on one machine
	$(BIN)/python tools/trace.py

check: setup
	$(BIN)/ruff format --check src tests benchmarks tools
	$(BIN)/ruff check src tests benchmarks tools
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format src tests benchmarks tools
	$(BIN)/ruff check --fix src tests benchmarks tools

bench: setup ## every benchmark; they refuse to start while another process uses a core
	$(BIN)/python -m benchmarks.step speed --precision float32
	$(BIN)/python -m benchmarks.step speed --precision float32 --px 64 --batch 64 --models resnest14 seresnext26d tresnet_m
	$(BIN)/python -m benchmarks.step memory
	$(BIN)/python -m benchmarks.feed $(FEWSIGHT_DATA)
	$(BIN)/python -m benchmarks.views $(FEWSIGHT_DATA)
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.losses
	$(BIN)/python -m benchmarks.check faults $(FEWSIGHT_DATA)/tiny-imagenet-50
	$(BIN)/python -m benchmarks.accuracy run $(FEWSIGHT_DATA) --out runs/accuracy --sides fewsight,resnet18,timm-resnet18,ridge
	$(BIN)/python -m benchmarks.accuracy table $(FEWSIGHT_DATA) --out runs/accuracy

docs: setup .venv/docs-installed ## the documentation site, into site/; warnings are errors
	$(BIN)/python tools/commands_page.py
	$(BIN)/zensical build --clean --strict

setup: .venv/installed

.venv/installed: pyproject.toml tools/setup.sh
	PYTHON="$(PYTHON)" sh tools/setup.sh
	touch .venv/installed

.venv/docs-installed: pyproject.toml .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch .venv/docs-installed

clean:
	rm -rf .venv site .cache .mypy_cache .ruff_cache .pytest_cache
