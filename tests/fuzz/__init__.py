"""Fuzzing: targets that feed hostile bytes to a parser or a core, and two runners for them.

`test_targets.py` runs each target with hypothesis for a second or two, as a part of `make test`. `make fuzz` runs
them for hours, with atheris where it is installed. CONTRIBUTING.md describes how to add a target.
"""
