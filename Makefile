PYTHON ?= python3
VENV := .venv
CARGO := cargo

.PHONY: demo test check lapack clean

# Builds, installs ONNX Runtime beside the sources, rewrites a fixture and proves the result.
demo: $(VENV)/runtime
	$(CARGO) run --release --quiet -- rewrite fixtures/optimum-llama -o out/demo

# Installs what the tests need and runs them all.
test: $(VENV)/tests $(VENV)/serving/ready tests/js/node_modules /usr/bin/chromium check
	$(CARGO) test --release --workspace
	$(MAKE) lapack

# What needs no test run: formatting and lints.
check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings

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
