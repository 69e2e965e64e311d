# Everything from a fresh checkout: `make demo` trains, `make test` tests. Both make the
# virtual environment .venv and build the extension first.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
CUDNN ?= nvidia-cudnn-cu13>=9.8,<10
# auto builds the CUDA part too where nvcc is found; that takes minutes.
export YOLOV9MEM_CUDA ?= 0

BIN := $(VENV)/bin
C_FILES := $(wildcard csrc/*/*.c csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh)
C_FORMATTED := $(C_FILES) $(wildcard csrc/*/*.cpp csrc/*/include/*.h tests/arm/*.c)
PYTHON_FOLDERS := yolov9mem tests benchmarks examples $(wildcard *.py)
SANITIZED := build/sanitize
# Those that reach every C file in little time.
SANITIZE_TESTS := tests/test_blocks.py tests/test_graph.py tests/test_leaks.py \
    tests/test_plan.py tests/test_plan_memory.py tests/test_plan_planar.py \
    tests/test_plan_recompute.py::test_random_graphs tests/test_plan_stages.py \
    tests/test_sgd.py tests/test_torch_unchanged.py $(wildcard tests/test_mosaic*.py)

# A process for each core, whatever psutil takes for one, but at most four: each may need
# 2 GB. The tests of a file stay in one, for they share fixtures; files in the order of
# their names, else those of few tests, which last longest, would come last and alone.
IN_PARALLEL := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Of setup.py and build_cuda.py: another value is another build.
SWITCHES := $(foreach name,CUDA CUDA_ARCHS DEBUG SANITIZE WERROR,$(YOLOV9MEM_$(name)),)

.PHONY: FORCE help build demo test lint format sanitize cuda cudnn rehearse opencv5 oldest \
    bench clean

help:
	@echo "make demo      train on drawn shapes with and without yolov9mem"
	@echo "make test      all tests"
	@echo "make lint      ruff, clang-format, mypy"
	@echo "make format    rewrite the sources as lint wants them"
	@echo "make sanitize  the tests of the C core under ASan and UBSan"
	@echo "make cuda      compile the CUDA part for every architecture, test that it loads"
	@echo "make cudnn     install cuDNN (0.5 GB) for the tests of its plans; needs no GPU"
	@echo "make rehearse  the tests of a GPU, most of them, with host memory in its place"
	@echo "make opencv5   the mosaic's tests with OpenCV 5, which warps in float"
	@echo "make oldest    all tests with the oldest PyTorch, which takes 5 GB of disk"
	@echo "make bench     measure, write a record and the tables of README.md"
	@echo "make clean     remove what was built, .venv included"

$(VENV)/.packages:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "setuptools>=77" "numpy>=2,<3"
	$(BIN)/pip install --quiet "$(TORCH)"
	@touch $@

# Only as new as the last change of a switch.
$(VENV)/.switches: $(VENV)/.packages FORCE
	@echo '$(SWITCHES)' | cmp -s - $@ || echo '$(SWITCHES)' >$@

$(VENV)/.built: $(VENV)/.packages $(VENV)/.switches pyproject.toml setup.py \
    build_cuda.py $(C_FILES)
	$(BIN)/pip install --quiet --no-build-isolation -e ".[test,lint]"
	@touch $@

build: $(VENV)/.built

demo: build
	$(BIN)/python examples/train_dual.py --demo

test: build
	$(BIN)/python -m pytest $(IN_PARALLEL)

lint: build
	$(BIN)/ruff check $(PYTHON_FOLDERS)
	$(BIN)/ruff format --check $(PYTHON_FOLDERS)
	@echo clang-format --dry-run -Werror csrc
	@$(BIN)/clang-format --dry-run -Werror $(C_FORMATTED)
	$(BIN)/mypy

format: build
	$(BIN)/ruff check --fix $(PYTHON_FOLDERS)
	$(BIN)/ruff format $(PYTHON_FOLDERS)
	@echo clang-format -i csrc
	@$(BIN)/clang-format -i $(C_FORMATTED)

sanitize: build
	YOLOV9MEM_SANITIZE=1 $(BIN)/python setup.py --quiet build \
	    --build-base $(SANITIZED)/tmp --build-lib $(SANITIZED)/lib
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	PYTHONMALLOC=malloc PYTHONPATH=$(CURDIR)/$(SANITIZED)/lib YOLOV9MEM_EXPECT_SANITIZE=1 \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	$(BIN)/pytest $(IN_PARALLEL) $(SANITIZE_TESTS)

# Every architecture of build_cuda.py: needs nvcc and minutes, no GPU. The tests are those
# of the extension itself: what it says of its build, and without a driver.
cuda: build
	YOLOV9MEM_CUDA=only $(BIN)/python setup.py --quiet build \
	    --build-base build/cuda/tmp --build-lib build/cuda/lib
	cp yolov9mem/_core.*.so build/cuda/lib/yolov9mem/
	PYTHONPATH=$(CURDIR)/build/cuda/lib $(BIN)/pytest tests/test_cuda_module.py

# cuDNN alone: what it depends on is only needed to run, not to plan.
$(VENV)/.cudnn: $(VENV)/.packages
	$(BIN)/pip install --quiet --no-deps "$(CUDNN)"
	@touch $@

cudnn: build $(VENV)/.cudnn

# What a GPU machine runs must be right the first time: its minutes are few.
rehearse: build
	YOLOV9MEM_REHEARSE=1 $(BIN)/pytest $(IN_PARALLEL) $(wildcard tests/test_gpu_*.py)

build/opencv5/.installed: $(VENV)/.packages
	$(BIN)/pip install --quiet --no-deps --target $(@D) "opencv-python-headless>=5,<6"
	@touch $@

opencv5: build build/opencv5/.installed
	PYTHONPATH=$(CURDIR)/build/opencv5 $(BIN)/pytest $(IN_PARALLEL) \
	    $(wildcard tests/test_mosaic*.py) \
	    tests/test_launch_pictures.py tests/test_example_swap.py

build/oldest/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet "setuptools>=77" "numpy>=2,<2.3" "torch==2.4.1"
	$(@D)/bin/pip install --quiet --no-build-isolation -e ".[test]"
	@touch $@

oldest: build/oldest/.installed
	build/oldest/bin/python -m pytest $(IN_PARALLEL)

bench: build
	$(BIN)/python -m benchmarks cpu
	$(BIN)/python -m benchmarks render

clean:
	rm -rf $(VENV) build *.egg-info yolov9mem/*.so
