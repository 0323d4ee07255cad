"""Faults of C++ source as .clang-format lays it out: operators between spaces, numbers, conditions, statements left
out. Not in comments, texts, directives, declarations of templates, and not in what is thrown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.mutation.fault import Fault

_TOKEN = re.compile(
    r"""
    (?P<space>\s+ | //[^\n]* | /\*.*?\*/ | ^[ ]*\#(?:\\\n|[^\n])*)
  | (?P<text>R"(?P<mark>[^(]*)\(.*?\)(?P=mark)" | "(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*')
  | (?P<number>(?:0[xX][0-9a-fA-F']+ | (?:\d[\d']*\.?[\d']*|\.\d+)(?:[eE][+-]?\d+)?)[uUlLzZfF]*)
  | (?P<word>[A-Za-z_]\w*)
  | (?P<operator><<= | >>= | \.\.\. | -> | :: | \+\+ | -- | << | <= | >= | == | != | && | \|\| | [-+*/%&|^]= | .)
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
_OTHERS = {
    "+": ("-",), "-": ("+",), "*": ("/",), "/": ("*",), "%": ("*",), "<": ("<=", ">"), "<=": ("<", ">="),
    ">": (">=", "<"), ">=": (">", "<="), "==": ("!=",), "!=": ("==",), "&&": ("||",), "||": ("&&",), "+=": ("-=",),
    "-=": ("+=",), "*=": ("/=",), "/=": ("*=",), "true": ("false",), "false": ("true",),
}  # fmt: skip
# Up to their end nothing is changed: types, and what is said of a fault.
_PASSED = {"throw": ";", "using": ";", "static_assert": ";", "template": ">", "typedef": ";", "enum": ";"}
_SAYS = re.compile(r"[Ee]rror|fail|need|require|refuse|said|sentence")
_STATEMENT = re.compile(
    r"^[ ]+(?!return|throw|delete|using|else|case|const |auto |static )"
    r"(?:[\w:.]+(?:->|\.|\[[^\]]*\])*)+(?:\([^;{}]*\)|[ ][-+*/]?=[ ][^;{}]+|\+\+);$",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Token:
    kind: str
    text: str
    start: int
    end: int


def tokens(source: str) -> list[Token]:
    found = []
    for match in _TOKEN.finditer(source):
        kind = next(name for name in ("space", "text", "number", "word", "operator") if match[name] is not None)
        if kind != "space":
            found.append(Token(kind, match[0], match.start(), match.end()))
    return found


def faults(file: str, source: str) -> list[Fault]:
    """All of them, in the order of the file."""
    found = [*_of_tokens(file, source), *_of_statements(file, source)]
    return sorted(found, key=lambda fault: (fault.start, fault.end, fault.new))


def _of_tokens(file: str, source: str) -> Iterator[Fault]:
    found = tokens(source)
    until, depth = "", 0
    for index, token in enumerate(found):
        if until:
            depth += (token.text in "([{<" and until == ">") - (token.text == ">" and until == ">")
            if token.text == until and depth <= 0:
                until = ""
            continue
        if token.text in _PASSED:
            until, depth = _PASSED[token.text], 0
            continue
        for new in _other(source, found, index):
            yield _fault(file, source, token.start, token.end, new)
        if token.text == "if" and found[index + 1].text == "(":
            end = _closing(found, index + 1)
            start = found[index + 1].end
            inner = source[start : found[end].start]
            turned = len(re.findall("[!=]=", inner)) == 1 and not re.search(r"&&|\|\|", inner)
            if ";" not in inner and "=" not in re.sub(r"[=!<>]=", "", inner) and not turned:
                yield _fault(file, source, start, found[end].start, f"!({inner})")


def _other(source: str, found: list[Token], index: int) -> tuple[str, ...]:
    token = found[index]
    if token.kind == "number":
        return _numbers(token.text)
    if token.text in ("true", "false"):
        return _OTHERS[token.text]
    spaced = source[token.start - 1] == " " and source[token.end : token.end + 1] in (" ", "\n")
    if token.kind == "operator" and spaced and token.text in _OTHERS:
        sides = found[index - 1], found[index + 1]
        return () if any(side.kind == "text" for side in sides) else _OTHERS[token.text]
    if token.text == "!" and found[index + 1].kind == "word":
        return (" ",)
    return ()


def _numbers(text: str) -> tuple[str, ...]:
    digits = re.match(r"(?:0[xX][0-9a-fA-F']+|[\d'.]+(?:[eE][+-]?\d+)?)", text)
    assert digits is not None
    ending, number = text[digits.end() :], digits[0].replace("'", "")
    if "." in number or (ending.lower().startswith("f") and not number.startswith("0x")):
        return (f"{float(number) * 2 or 1.0!r}{ending}",)
    value = int(number, 0) if number.lower().startswith("0x") or not number.startswith("0") else int(number, 8)
    return tuple(f"{each}{ending}" for each in (value + 1, value - 1) if each >= 0)


def _closing(found: list[Token], index: int) -> int:
    depth = 0
    for at in range(index, len(found)):
        depth += (found[at].text == "(") - (found[at].text == ")")
        if not depth:
            return at
    raise ValueError("a bracket is not closed")


def _of_statements(file: str, source: str) -> Iterator[Fault]:
    for match in _STATEMENT.finditer(source):
        text = match[0].strip()
        if not _SAYS.search(text.partition("(")[0]) and text.count("(") == text.count(")"):
            yield _fault(file, source, match.end() - len(text), match.end(), ";")


def _fault(file: str, source: str, start: int, end: int, new: str) -> Fault:
    line = source.count("\n", 0, start) + 1
    at = len(source[:start].encode())
    old, begin = source[start:end], source.rfind("\n", 0, start) + 1
    text = source[begin : source.index("\n", start)]
    return Fault(
        file=file, start=at, end=at + len(old.encode()), line=line, column=start - begin + 1,
        text=text.strip(), within=start - begin - (len(text) - len(text.lstrip())),
        old=old, new=new, first=line, last=line + old.count("\n"),
    )  # fmt: skip
