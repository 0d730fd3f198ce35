# Two commands on a fresh machine: `make demo` and `make test`. Everything is installed into .venv, pinned by constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
# Extras installed for `make test` and `make lint`; continuous integration adds more of them: .ci/run
EXTRAS ?= test,viz
comma := ,

.DEFAULT_GOAL := help
.PHONY: help demo test test-faults lint format bench table2 ablations miniature screenshot clean

help:  ## Show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):[^#]*## /\1\t/' | expand -t 12

# One stamp per set of extras, so that a change of pins or of extras installs again and nothing else does.
STAMP := .venv/.installed-$(subst $(comma),-,$(EXTRAS))
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python >= 3.11 is needed: make PYTHON=python3.11 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

test: $(STAMP)  ## Prove every formula; ends with a table of errors and bounds
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4

test-faults: $(STAMP)  ## Kill, fill, flip and poison at every place there is; ends with a table of faults
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 -m faults tests

lint: $(STAMP)  ## Lint, format check and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## Rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## Time 8-bit training beside peers and limits, 20 minutes (EXTRAS=test,viz,parity; REAL_DATA=DIR)
	$(BIN)/python benchmarks/bench.py $(if $(REAL_DATA),--real-data $(REAL_DATA))

demo: $(STAMP)  ## Fine-tune the bundled LLaMA on the bundled medicine, examine it, ask it three questions
	@$(BIN)/python evaluate.py --out runs/demo/exam-before.json
	@$(BIN)/python train.py --config configs/miniature-lora-8bit.toml --output runs/demo --resume auto
	@$(BIN)/python evaluate.py --adapter runs/demo/adapter --int8 --out runs/demo/exam-after.json --compare runs/demo/exam-before.json
	@$(BIN)/python generate.py --adapter runs/demo/adapter --int8 --side-by-side --instruction 'Answer this question truthfully'

table2: $(STAMP)  ## MedAlpaca's Table 2 in miniature: six models, three seeds, 22 minutes; goes on where it was stopped
	$(BIN)/python benchmarks/table2.py

ablations: $(STAMP)  ## What each ingredient does: 17 changes of a recipe, three seeds, two hours; goes on where it was stopped
	$(BIN)/python benchmarks/table2.py --ablations

# The base is stored in bf16: half the size, and nothing the exam would notice.
BASE := src/data/miniature/files/base
miniature: $(STAMP)  ## Rebuild the bundled world: corpus, meadow, exams, tokenizer, pretrained base (six minutes)
	$(BIN)/python -m data.miniature.build
	time -p $(BIN)/python train.py --config configs/miniature-pretrain.toml
	rm -rf runs/miniature/base
	$(BIN)/python convert.py layout runs/miniature/model runs/miniature/base --layout hf --dtype bfloat16
	cp runs/miniature/base/* $(BASE)/

screenshot: $(STAMP)  ## Take the pictures in docs/ again (after make demo; needs EXTRAS=test,serve and Chromium)
	PYTHONPATH=tests $(BIN)/python tests/serving/screenshot.py runs/demo/adapter docs/serving.png
	PYTHONPATH=src:tests $(BIN)/python tests/pages/screenshot.py runs/demo/report.html docs/report-run.png
	PYTHONPATH=src:tests $(BIN)/python tests/pages/screenshot.py runs/demo/exam-after.html docs/report-exam.png

clean:  ## Remove what runs and tools leave behind
	rm -rf runs build .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
