# The commands of the project. Each makes .venv first where it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VIEWER := pipelines/viewer
UV := $(shell command -v uv 2>/dev/null || echo $(PYTHON) -m uv)

export SLIDEMIL_SHARED ?= ../shared
# Where images forbid byte code, each of the hundreds of processes of the tests would compile torch and timm anew (6 s).
unexport PYTHONDONTWRITEBYTECODE

# Peers of the benchmarks, one environment per group that gets along; what needs a CUDA device is left out of cuCIM's.
PEERS := readers cucim hs2p stain lazyslide slide2vec mil survival
CUDA_ONLY := cuda-bindings cuda-pathfinder cuda-toolkit cupy-cuda12x nvidia-cublas-cu12 nvidia-cuda-nvrtc-cu12 \
	nvidia-cuda-runtime-cu12 nvidia-cufft-cu12 nvidia-curand-cu12 nvidia-cusolver-cu12 nvidia-cusparse-cu12 \
	nvidia-nvimgcodec-cu12 nvidia-nvjitlink-cu12

.PHONY: env demo test test-slow lint bench bench-env bundle stress pin clean

env: $(READY)

$(READY): requirements/dev.txt pyproject.toml
	@$(UV) --version >/dev/null 2>&1 || $(PYTHON) -m pip install --quiet uv
	$(UV) venv --quiet --allow-existing --python '>=3.11,<3.14' $(VENV)
	$(UV) pip sync --quiet --python $(BIN)/python requirements/dev.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: env
	$(BIN)/slidemil demo --out demo-job

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# All but the tests marked slow. A process per core; the tests of a file stay together, for they share what they set up.
# Where such a process dies, the run ends there, and fails: started anew, it would wait for ever at the end.
test: env lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --timeout 900 --dist loadfile --max-worker-restart 0 -m "not slow"

# The slow ones, a short round of every benchmark and stress test among them: each goes to whichever core is free.
test-slow: env
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --timeout 900 --dist worksteal -m slow

# The one file of the page of `slidemil serve` that is not ours. Only this needs npm.
viewer: $(VIEWER)/asset/openseadragon.min.js

$(VIEWER)/asset/openseadragon.min.js: $(VIEWER)/web/package.json $(VIEWER)/web/package-lock.json
	@mkdir -p $(@D) .bench/viewer
	cp $(VIEWER)/web/package.json $(VIEWER)/web/package-lock.json $(VIEWER)/web/.npmrc .bench/viewer/
	cd .bench/viewer && npm ci --silent --ignore-scripts
	cp .bench/viewer/node_modules/openseadragon/LICENSE.txt $(@D)/openseadragon.LICENSE.txt
	cp .bench/viewer/node_modules/openseadragon/build/openseadragon/openseadragon.min.js $@
	@touch $@

bench: env
	-$(MAKE) --no-print-directory --keep-going bench-env
	$(BIN)/python benchmarks/_run_all.py

# A peer that cannot be installed is named by the benchmark, and its figures count as short.
bench-env: $(PEERS:%=.bench/%/.ready)

.bench/%/.ready: requirements/bench-%.txt
	@$(UV) --version >/dev/null 2>&1 || $(PYTHON) -m pip install --quiet uv
	$(UV) venv --quiet --clear --python '>=3.11,<3.14' $(@D)
	$(UV) pip sync --quiet --python $(@D)/bin/python $<
	@touch $@

stress: env
	$(BIN)/python benchmarks/_run_all.py --stress

# All that is installed where there is no network: docs/offline.md.
bundle: env
	$(PYTHON) requirements/offline/bundle.py dist/bundle $(if $(EXTRAS),--extras $(EXTRAS)) $(TARGET)

# Pins are made anew by hand; no index address goes into them.
pin:
	$(UV) pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-header \
		--all-extras --group dev pyproject.toml -o requirements/dev.txt
	$(UV) pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-header \
		pyproject.toml -c requirements/dev.txt -o requirements/run.txt
	for group in $(PEERS); do \
		$(UV) pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-header --no-annotate \
			$(CUDA_ONLY:%=--no-emit-package %) requirements/bench-$$group.in -o requirements/bench-$$group.txt; \
	done

clean:
	rm -rf $(VENV) .bench build dist demo-job $(VIEWER)/asset
