"""Scores on windows of held-out text: detection, fuzzing, and the test of the intruder, for any label and judge.

What is done as in delphi and what is not: docs/decisions/window-scores.md.
"""
