"""`--engine`: which builders serve a request."""

from __future__ import annotations

from collections.abc import Callable

from ropevit_export.backends.base import Builder
from ropevit_export.backends.tensorrt_rtx import TensorRtRtx
from ropevit_export.errors import BackendError, UsageError

# In the order in which `auto` tries them.
BUILDERS: dict[str, Callable[[], Builder]] = {"tensorrt-rtx": TensorRtRtx}
CHOICES = ("auto", "none", *BUILDERS)


def builders(engines: tuple[str, ...]) -> tuple[list[Builder], str | None]:
    """Builders in the order asked for, and, where `auto` found none, a sentence why.

    An engine asked for by name must be there; `auto` takes the first that is.
    """
    if "none" in engines and len(engines) > 1:
        raise UsageError(f"--engine none excludes the others, given: {', '.join(engines)}.")
    if engines == ("none",):
        return [], None
    if "auto" not in engines:
        return [BUILDERS[name]() for name in dict.fromkeys(engines)], None
    reasons = []
    for make in BUILDERS.values():
        try:
            return [make()], None
        except BackendError as error:
            reasons.append(str(error))
    return [], f"no engine was built: {'; '.join(reasons)}"
