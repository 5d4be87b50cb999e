# The commands that matter: `make verify` and `make test`, and while writing `make quick`. Each sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
.DELETE_ON_ERROR:
.PHONY: verify test quick lint docs bench chromium clean

verify: .venv/ready
	$(BIN)/polyattn verify

test: lint chromium docs
	$(BIN)/python benchmarks/run.py --smoke
	$(BIN)/python -m pytest -n 2 -m "not gpu"

# Under a minute: the mathematics on NumPy and on the strict array API.
quick: .venv/ready
	$(BIN)/python -m pytest -q --libraries numpy,strict -m "not slow and not gpu and not browser" \
	  tests/contract tests/masks tests/implementations tests/layers

# The browser test drives Debian's Chromium; without it (and without apt) run pytest -m "not gpu and not browser".
chromium:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
	  { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver >/dev/null; }

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/figures.py benchmarks/results

docs: .venv/ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	rm -rf docs/_build
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html
	$(BIN)/python docs/links.py docs/_build/html

# PyTorch goes in first and by version: any later requirement is then already met, by the CPU build where
# the machine has one.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==$$(sed -n 's/^torch==//p' constraints.txt)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf .venv docs/_build dist
