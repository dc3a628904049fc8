# `make train` and `make test` do everything on a fresh machine with Python 3.11.
PYTHON ?= python3.11
BIN := .venv/bin
RUNS ?= runs
SEED ?= 0
WORKERS := -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

.PHONY: train serve test test-all gpu-check lint bazel bazel-all report ablation-smoke

# Trains the convolutional teacher on the digits, then the distilled student.
train: .venv/installed
	$(BIN)/python -m deit_tf.train --flagfile=deit_tf/configs/digits_teacher.flags --seed=$(SEED) --run_dir=$(RUNS)/digits_teacher
	$(BIN)/python -m deit_tf.train --flagfile=deit_tf/configs/digits_distilled.flags --seed=$(SEED) --teacher=$(RUNS)/digits_teacher --run_dir=$(RUNS)/digits_distilled

# Exports the student that `make train` has made, and names what is in a dozen test images.
serve: .venv/installed
	$(BIN)/python -m export.onnxmodel --run_dir=$(RUNS)/digits_distilled --output=$(RUNS)/digits.onnx --target=cpu
	$(BIN)/python tools/digits_as_files.py $(RUNS)/digits_images
	$(BIN)/python -m serving.predict --model=$(RUNS)/digits.onnx --top_k=3 $(RUNS)/digits_images

test: .venv/installed-dev
	$(BIN)/python -m pytest $(WORKERS)

# With the slow tests, and the networks on Keras' other backends.
test-all: .venv/installed-dev
	$(BIN)/python -m pip install --quiet jax
	$(BIN)/python -m pytest $(WORKERS) -m "slow or not slow"

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The floors, as Bazel sees them: the form of BUILD, and the tests that take seconds.
bazel: .venv/installed-dev
	$$(tools/npm_program.sh @bazel/buildifier@8.2.1 buildifier-linux_amd64) -mode=check -lint=warn -r BUILD MODULE.bazel WORKSPACE.bazel tools/bazel_offline
	tools/bazel_test.sh --test_size_filters=small

# All but the slow tests, each with no more of the source than BUILD gives it.
bazel-all: .venv/installed-dev
	tools/bazel_test.sh

# docs/performance.md and the marked tables of other pages, from the files of benchmarks/results.
report: .venv/installed
	$(BIN)/python -m benchmarks.report

# One epoch of every way that benchmarks.ablation compares, and its page, away from the results.
ablation-smoke: .venv/installed
	rm -rf .cache/ablation
	$(BIN)/python -m benchmarks.ablation --seeds=1 --labels=100 --epochs=1 --results=.cache/ablation/smoke.jsonl --runs_dir=.cache/ablation/runs --docs_dir=.cache/ablation

# A few steps of training, an export and ONNX Runtime on a GPU; says plainly what it found.
gpu-check: .venv/installed-cuda
	$(BIN)/python tools/gpu_check.py

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

.venv/installed-cuda: .venv/installed requirements-cuda.txt
	$(BIN)/python -m pip install --quiet -r requirements-cuda.txt
	touch $@
