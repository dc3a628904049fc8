"""Runs one file of tests under Bazel with the settings of pyproject.toml."""

import os
import sys

import pytest

scratch = os.environ["TEST_TMPDIR"]
os.environ.setdefault("HOME", scratch)
# A command that a test starts finds what the test finds; the first place is this script's own.
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[1:])
# The source tree is not to be written: no cache, and what tests write goes where Bazel clears it.
options = ["-p", "no:cacheprovider", f"--basetemp={scratch}/pytest"]
if "XML_OUTPUT_FILE" in os.environ:
    options.append(f"--junitxml={os.environ['XML_OUTPUT_FILE']}")
sys.exit(pytest.main([*options, *sys.argv[1:]]))
