PYTHON ?= python3
VENV := .venv
CARGO := cargo
# `none` leaves the tests of trained models out, and says so: they need files beside the repository.
MODELS ?= ../shared
# What `make affected` compares with, and whether it runs what it prints.
BASE ?= main
RUN ?=
# Fuzzing: how many mutants of each kind, and the number of the first.
MUTANTS ?= 1000000
SEED ?= 0

.PHONY: demo test test-train test-fast affected check deny package fuzz fuzz-pairs memory lapack clean

# Builds without tract, which is half of a first build, installs ONNX Runtime beside the sources, rewrites a fixture and
# proves the result.
demo: $(VENV)/runtime
	$(CARGO) run --release --quiet --no-default-features -- rewrite fixtures/optimum-llama -o out/demo

# Installs what the tests need and runs them all, ignored ones included.
test: $(VENV)/tests $(VENV)/serving/ready tests/js/node_modules /usr/bin/chromium check
ifeq ($(MODELS),none)
	@echo "NOT RUN: the tests of trained models (MODELS=none):"
	@$(CARGO) test --release --quiet --features train --test it -- --list --ignored real_model:: a_trained_model exports_survive
	$(CARGO) test --release --workspace --features train -- --include-ignored --skip a_wheel_installed --skip real_model:: --skip a_trained_model --skip exports_survive
else
	GQA2MLA_SHARED=$(abspath $(MODELS)) $(CARGO) test --release --workspace --features train -- --include-ignored --skip a_wheel_installed
endif
	@# By itself: the build of the wheel takes every core.
	$(CARGO) test --release --features train --test it -- --include-ignored a_wheel_installed
	$(MAKE) lapack

# The tests that take seconds and need no more than Python packages.
test-fast: $(VENV)/tests
	$(CARGO) test --release

# Prints the tests that an edit touches; RUN=1 runs them.
affected: $(VENV)/tests
	@tests/affected.sh $(BASE) $(if $(RUN),run)

# What needs no test run: formatting, lints, the smaller build, and dependencies where cargo-deny is installed.
check:
	$(CARGO) fmt --all --check
	@# Files that a macro declares are not seen by cargo fmt.
	rustfmt --check --edition 2024 passes/src/forms/*.rs passes/src/operators/*.rs
	$(CARGO) clippy --release --workspace --features train --all-targets -- -D warnings
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(MAKE) deny; \
		else echo "NOT RUN: cargo deny (cargo install cargo-deny --locked); CI runs it"; fi

# Advisories need the network; the rest does not.
deny:
	$(CARGO) deny check

# The trainer alone: its own crate, and the commands of the feature `train`.
test-train: $(VENV)/tests
	$(CARGO) test --release -p gqa2mla-train
	$(CARGO) test --release --features train --test it -- tune::

# What would be published: both crates, built from what is packed.
package:
	$(CARGO) publish --workspace --dry-run

# Long fuzzing; `make test` runs a slice. docs/fuzzing.md
fuzz:
	GQA2MLA_FUZZ_MUTANTS=$(MUTANTS) GQA2MLA_FUZZ_SEED=$(SEED) \
		$(CARGO) test --release -p gqa2mla-fuzz -- --nocapture mutants_of

# Mutants that are rewritten are compared with their originals in ONNX Runtime.
fuzz-pairs: $(VENV)/tests
	GQA2MLA_FUZZ_PAIRS=$(MUTANTS) GQA2MLA_FUZZ_SEED=$(SEED) \
		$(CARGO) test --release --test it -- --ignored --nocapture several_random_changes

# Peak memory of rewrites of 15 GB models, which are sparse files.
memory: $(VENV)/tests
	$(CARGO) build --release
	$(VENV)/bin/python tests/large/memory.py target/release/gqa2mla

# The two eigenvalue back ends agree. OpenBLAS comes from the system.
lapack:
	test -e /usr/include/openblas_config.h -o -e /usr/include/$(shell uname -m)-linux-gnu/openblas_config.h \
		|| { apt-get update -qq && apt-get install -y -qq libopenblas-dev; }
	$(CARGO) test --release -p gqa2mla-passes --features lapack --test spectral

$(VENV)/runtime: tests/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet $$(grep onnxruntime== tests/requirements.txt)
	touch $@

$(VENV)/tests: tests/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet -r tests/requirements.txt
	touch $@ $(VENV)/runtime

# The stacks that serve models, beside what the tests need themselves.
$(VENV)/serving/ready: tests/requirements-serving.txt
	$(PYTHON) -m venv $(VENV)/serving
	$(VENV)/serving/bin/pip install --quiet -r tests/requirements-serving.txt
	@# 1.7 GB that torch loads for a GPU alone.
	rm -rf $(VENV)/serving/lib/python*/site-packages/triton
	rm -f $(VENV)/serving/lib/python*/site-packages/nvidia/cudnn/lib/libcudnn_*
	touch $@

# Prebuilt parts for GPUs are not fetched.
tests/js/node_modules: tests/js/package-lock.json
	cd tests/js && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	touch $@

# Shows the page of a report to the tests.
/usr/bin/chromium:
	apt-get update -qq && apt-get install -y -qq chromium

clean:
	rm -rf target $(VENV) tests/js/node_modules out
