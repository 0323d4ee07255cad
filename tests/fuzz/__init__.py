"""Readers of strangers' files on files that atheris makes: `python -m tests.fuzz READER [libFuzzer's options]`.

`readers` is the table, `judge` says what must be so whatever a file holds, `mutators` keep a file in its format while
it is changed, `bundle` makes a bundle around a file. `tests/test_fuzz.py` replays `corpus/`, without atheris.
"""
