# `make` lists the targets. PYTHON picks the interpreter, PIP_ARGS and ARGS are handed through.
PYTHON ?= python3
VENV := .venv
SCRIPTS := $(if $(filter Windows_NT,$(OS)),Scripts,bin)
BIN := $(VENV)/$(SCRIPTS)
STAMP := $(VENV)/.installed
PIP_ARGS ?=
ARGS ?=
MINUTES ?= 10

.DEFAULT_GOAL := help
.PHONY: help venv man demo check quick-method quick-rooms test test-thorough test-native test-extras test-app test-metrics test-cuda-host fuzz lint types test-wheel \
  docs claims bench quality wheel gpu-kit clean

help:
	@echo "make venv    a virtual environment in .venv with all that the rest needs"
	@echo "make man     manual pages of the commands, in out/man"
	@echo "make demo    fuse three example pairs, pictures in out/"
	@echo "make check   style, types and the quick tests, under a minute: while you work"
	@echo "make test    run all the tests        (ARGS='-k cli' chooses, ARGS=-x stops early)"
	@echo "make test-thorough  more cases of the same kind, for minutes: after changes to kernels"
	@echo "make test-native  the C++ for other processors, and under sanitizers: a table in out/native/"
	@echo "make test-extras  what needs an extra: engines, files, volumes, Ray, storage, browser (into .extras-venv)"
	@echo "make test-app  of these the page in the browser, where chromium is"
	@echo "make test-metrics  LPIPS, DISTS, detection, segmentation (6 GB into .metrics-venv)"
	@echo "make test-cuda-host  the GPU path's host code on a fake CUDA device (5 GB into .cuda-venv)"
	@echo "make fuzz    feed it bad calls, files and kills (MINUTES=10), a table in out/fuzz/"
	@echo "make lint    check style and format"
	@echo "make types   check the types"
	@echo "make docs    README, topics, references and the API as a site in out/site (into .venv)"
	@echo "make claims  time what README says again, in ten minutes: claimed beside measured"
	@echo "make bench   time this machine against the reference path (ARGS="--save --report": all of it)"
	@echo "make quality  the pictures against their targets (ARGS=FOLDER with ivf/ and mif/)"
	@echo "make gpu-kit  what bench/gpu_suite.sh needs, in one folder (CUDA=cuda12 WITH_TORCH=1 ARGS=…)"
	@echo "make wheel   dist/*.whl with the C++ compiled (CXX=aarch64-linux-gnu-g++: for ARM)"
	@echo "make test-wheel  that wheel, in an environment of its own in out/wheel-venv"
	@echo "make clean   remove .venv, the other environments, out/ and everything built"

venv: $(STAMP)

$(STAMP): setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "ddfm_fast needs Python 3.10 or newer; say which: make venv PYTHON=python3.12"; exit 1; }
	@echo "venv: making $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "venv: installing ddfm_fast and its dependencies (PyTorch is large: minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) \
	  -c constraints.txt setuptools wheel
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) \
	  -c constraints.txt --no-build-isolation -e '.[test,diffusers,bench]'
	@touch $@
	@echo "venv: ready"

man: venv
	@$(BIN)/python tests/tools/man_pages.py out/man

demo: venv
	@$(BIN)/python -m ddfm_fast demo --out out $(ARGS)

test: venv
	@echo "test: running"
	@$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal --timeout 900 \
	  --durations 15 $(ARGS)

check: venv
	@$(MAKE) --no-print-directory -j 4 lint types quick-method quick-rooms

QUICK = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -p no:cacheprovider -m "not slow and not gpu and not thorough"

quick-method: venv
	@$(QUICK) tests/method tests/integrations tests/house $(ARGS)

quick-rooms: venv
	@$(QUICK) tests --ignore=tests/method --ignore=tests/integrations --ignore=tests/house \
	  --ignore=tests/kernels --ignore=tests/bench --ignore=tests/cli $(ARGS)

test-thorough: venv
	@echo "test-thorough: what make test leaves out"
	@$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal -m thorough $(ARGS)
	@echo "test-thorough: kernels in the interpreter"
	@TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 \
	  --dist worksteal -m thorough tests/kernels tests/method tests/priors $(ARGS)

test-native: venv
	@$(BIN)/python tests/tools/native.py $(ARGS)

# Gradio asks for an older Pillow than the core is tested with: one more reason for an environment apart.
EXTRAS_VENV := .extras-venv
EXTRAS_BIN := $(EXTRAS_VENV)/$(SCRIPTS)
EXTRAS := app-test,bench,diffusers,docs,engines,files,medical,notebook,ray-serve,storage-test

$(EXTRAS_VENV)/.installed: setup.py constraints.txt
	@echo "test-extras: making $(EXTRAS_VENV) (1 GB: PyTorch, OpenVINO, Ray and more)"
	@test -x $(EXTRAS_BIN)/python || $(PYTHON) -m venv $(EXTRAS_VENV)
	@sed 's/^pillow==13.*/pillow==12.3.0/' constraints.txt > $(EXTRAS_VENV)/constraints.txt
	@$(EXTRAS_BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) \
	  -c $(EXTRAS_VENV)/constraints.txt setuptools wheel
	@$(EXTRAS_BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) \
	  -c $(EXTRAS_VENV)/constraints.txt --no-compile --no-build-isolation -e '.[$(EXTRAS)]' \
	  hypothesis pytest pytest-rerunfailures pytest-timeout
	@touch $@

test-extras: $(EXTRAS_VENV)/.installed
	@echo "test-extras: running"
	@$(EXTRAS_BIN)/python -m pytest -q -m extras --timeout 600 --durations 15 \
	  $$(grep -rl --include='test_*.py' 'mark\.extras' tests) $(ARGS)

test-app: $(EXTRAS_VENV)/.installed
	@echo "test-app: running"
	@$(EXTRAS_BIN)/python -m pytest -q -m extras tests/page $(ARGS)

# torchvision runs only beside the very PyTorch that it was built for, which .venv need not have: here
# pip chooses both, and what hangs on PyTorch's version is not pinned.
METRICS_VENV := .metrics-venv

$(METRICS_VENV)/.installed: setup.py constraints.txt
	@echo "test-metrics: making $(METRICS_VENV), about 6 GB where pip takes PyTorch for CUDA"
	@test -x $(METRICS_VENV)/bin/python || $(PYTHON) -m venv $(METRICS_VENV)
	@grep -Ev '^(torch|torchvision|triton|nvidia-.*|cuda-.*)==' constraints.txt \
	  > $(METRICS_VENV)/constraints.txt
	@$(METRICS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) \
	  -c $(METRICS_VENV)/constraints.txt setuptools wheel
	@$(METRICS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) \
	  -c $(METRICS_VENV)/constraints.txt --no-build-isolation -e '.[test,metrics,detect]'
	@touch $@

test-metrics: $(METRICS_VENV)/.installed
	@echo "test-metrics: running"
	@$(METRICS_VENV)/bin/python -m pytest -q -m extras tests/metrics $(ARGS)

# CUDA wheels of PyTorch, outside of .venv; CUDA_VENV= names an environment that is there already.
CUDA_VENV ?= .cuda-venv
FAKE = CUDA_VENV=$(abspath $(CUDA_VENV)) tests/fakecuda/run.sh python -m pytest -q \
  -p fakeplugin -p no:cacheprovider tests/fakecuda

$(CUDA_VENV)/bin/python:
	@echo "test-cuda-host: making $(CUDA_VENV), about 5 GB"
	@$(PYTHON) -m venv $(CUDA_VENV)
	@$(CUDA_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) \
	  -r tests/fakecuda/requirements.txt

test-cuda-host: $(CUDA_VENV)/bin/python
	@echo "test-cuda-host: rules, counts and memory"
	@$(FAKE) $(ARGS)
	@echo "test-cuda-host: right numbers"
	@FAKE_NUMBERS=1 $(FAKE)/test_numbers.py $(ARGS)

# the fuzzers together run for seven and a half times FUZZ_SECONDS
fuzz: venv
	@rm -f out/fuzz/table.jsonl
	@FUZZ_SECONDS=$$(( 60 * $(MINUTES) * 2 / 15 )) $(BIN)/python -m pytest -q -s tests/fuzz $(ARGS)

lint: venv
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check --quiet .

types: venv
	@$(BIN)/python tests/tools/check_types.py

docs: venv
	@echo "docs: installing the extra"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) \
	  -c constraints.txt --no-build-isolation -e '.[docs]'
	@$(BIN)/python tests/tools/docsite.py

claims: venv
	@$(BIN)/python tests/tools/claims.py $(ARGS)

bench: venv
	@$(BIN)/python -m bench $(ARGS)

quality: venv
	@$(BIN)/python -m bench.quality $(ARGS)

wheel: venv
	@rm -rf build
	@echo "wheel: compiling"
	@DDFM_FAST_PREBUILT=1 $(BIN)/python -m pip wheel --quiet --disable-pip-version-check $(PIP_ARGS) \
	  --no-deps --no-build-isolation --wheel-dir dist .
	@ls -l dist/*.whl

test-wheel: wheel
	@rm -rf out/wheel-venv
	@$(PYTHON) -m venv out/wheel-venv
	@echo "test-wheel: installing it, with PyTorch"
	@out/wheel-venv/$(SCRIPTS)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) \
	  -c constraints.txt "$$(ls -t dist/*.whl | head -n 1)"
	@echo "test-wheel: running it"
	@cd out/wheel-venv && $(SCRIPTS)/ddfm-fast doctor && $(SCRIPTS)/ddfm-fast demo --steps 5 --quiet \
	  && $(SCRIPTS)/ddfm-fast help gpu > help.txt && test -s help.txt

CUDA ?= cuda13

gpu-kit: venv
	@$(BIN)/python -m bench.kit --cuda $(CUDA) $(if $(WITH_TORCH),--with-torch) $(PIP_ARGS) $(ARGS)

clean:
	rm -rf $(VENV) .cuda-venv $(EXTRAS_VENV) $(METRICS_VENV) build dist out *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
