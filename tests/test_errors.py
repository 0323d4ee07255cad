"""What others say, in one line of ours."""

from __future__ import annotations

from ropevit_export.errors import first_line, last_line, with_kind


def test_an_error_of_many_lines_becomes_one() -> None:
    error = RuntimeError("\n  at core.cpp:12:\n\n  no kernel for Softmax  \n")
    assert first_line(error) == "at core.cpp:12:"
    assert last_line(error) == "no kernel for Softmax"
    assert with_kind(error) == "RuntimeError: at core.cpp:12: no kernel for Softmax"


def test_an_error_without_a_word_is_no_error_of_ours() -> None:
    assert first_line(ValueError()) == last_line(" \n") == "no reason given"
    assert with_kind(AssertionError()) == "AssertionError: no reason given"


def test_a_long_error_is_cut() -> None:
    assert len(first_line("x" * 10_000)) == len(last_line("x" * 10_000)) == 300
