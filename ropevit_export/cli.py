"""The command line: a thin shell over `pipeline.export`. Nothing here imports torch or a runtime."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ropevit_export.errors import ParityError, RopevitError, UsageError
from ropevit_export.models.zoo import EXAMPLES, MODELS, find_model
from ropevit_export.values import Dim, Request, Resolution

if TYPE_CHECKING:
    from ropevit_export.bench import Benchmark
    from ropevit_export.evaluate import Accuracy
    from ropevit_export.pipeline import Bundle

ENGINES = ("auto", "none", "tensorrt-rtx")
BACKENDS = ("onnxruntime", "openvino")
# Ctrl-C, a polite kill, a closed terminal (which Windows does not have)
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def main() -> NoReturn:
    """Console entry point."""
    for signum in SIGNALS:
        signal.signal(signum, _interrupt)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch: huge pages for weights, half the page faults
    code = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, AttributeError):  # closed, or full
            stream.flush()
    os._exit(code)  # taking torch and TensorRT apart again takes two seconds and changes nothing


def run(arguments: Sequence[str]) -> int:
    """The exit code; an error is one line on stderr and the code of its class."""
    try:
        cli.main(list(arguments), prog_name="ropevit-export", standalone_mode=False)
    except click.ClickException as error:  # usage errors among them, with exit code 2
        return _fail(error.format_message(), error.exit_code)
    except RopevitError as error:
        return _fail(str(error), error.exit_code)
    except (click.Abort, _Interrupted):
        return _fail("interrupted, nothing was written.", 130)
    except BrokenPipeError:  # the reader of our stdout has left
        return 1
    except OSError as error:
        return _fail(f"can't write the result: {error.strerror or error}.", 1)
    except Exception as error:  # a bug of ours: still one line, and a traceback for whoever asks for it
        if os.environ.get("ROPEVIT_TRACEBACK"):
            raise
        return _fail(f"unexpected {type(error).__name__}: {error}. Please report it, with ROPEVIT_TRACEBACK=1 set.", 1)
    return 0


class _Interrupted(BaseException):
    """Raised where a signal arrives, so that every `finally` on the way out runs.

    Python drops what is raised inside a finaliser or a library's callback: the next stage then raises it again.
    """

    arrived = False


def _interrupt(number: int, frame: object) -> NoReturn:
    _Interrupted.arrived = True
    for signum in SIGNALS:  # a second one must not stop the clean-up
        signal.signal(signum, signal.SIG_IGN)
    raise _Interrupted


def _fail(message: str, code: int) -> int:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    return code


def _each(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], tuple[Any, ...]]:
    """A callback for an option that may be repeated and may hold commas."""

    def callback(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[Any, ...]:
        return tuple(parse(part.strip()) for value in values for part in value.split(","))

    return callback


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise UsageError(f"--batch {text!r} is not a number of images, such as 8.")
    return int(text)


def _target(text: str) -> str:
    """`89`, `8.9`, `sm89` or `SM_89`."""
    digits = text.lower().removeprefix("sm").strip("_").replace(".", "")
    if not (digits.isascii() and digits.isdigit()):
        raise UsageError(f"--sm {text!r} is not a compute capability, such as 89 or 120.")
    return digits


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 good, 1 a stage failed, 2 usage, 3 out of tolerance.",
)
@click.option("--model", metavar="NAME", help="Official, short or timm name; `ropevit-export models` lists them.")
@click.option(
    "--res",
    multiple=True,
    metavar="N|HxW",
    callback=_each(Resolution.parse),
    help="Image size; repeatable, commas too.",
)
@click.option(
    "--rope",
    type=click.Choice(["baked", "dynamic", "inputs"]),
    default="baked",
    show_default=True,
    help="Rotary tables: constants, one graph a size; or one graph for every size up to the largest (DeiT), where the "
    "graph makes them (dynamic) or the host feeds them (inputs).",
)
@click.option(
    "--weights",
    default="auto",
    show_default=True,
    metavar="auto|pretrained|random|PATH",
    help="auto: cached or hub weights, random ones where no hub can be reached. pretrained: no weights is an error.",
)
@click.option(
    "--revision",
    metavar="COMMIT",
    help="The hub's commit to take weights from  [default: the cached one, else the newest].",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8", "fp8"]),
    default="fp32",
    show_default=True,
    help="Number format of the graph itself.",
)
@click.option("--calib", metavar="DIR|digits", help="Images of the job, which int8 and fp8 ranges are measured on.")
@click.option("--batch", default="1", show_default=True, metavar="N|MIN:OPT:MAX", help="Static or dynamic batch.")
@click.option(
    "--engine",
    multiple=True,
    type=click.Choice(ENGINES),
    default=("auto",),
    help="Repeatable. auto: TensorRT-RTX, built ahead of time, where it is installed.  [default: auto]",
)
@click.option(
    "--sm",
    multiple=True,
    metavar="CC",
    callback=_each(_target),
    help="Compute capabilities an engine must run on, such as 86,89,120.  [default: all but 75]",
)
@click.option(
    "--output",
    type=click.Choice(["logits", "cls", "tokens"]),
    default="logits",
    show_default=True,
    help="Head, pooled feature, or all tokens.",
)
@click.option("--pixels", is_flag=True, help="The graph takes raw uint8 NHWC pixels and normalises itself.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**31 - 1),
    default=0,
    show_default=True,
    help="For random weights and the noise that parity is measured on.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The bundle's folder  [default: engines/<short name>-<res>-<precision>].",
)
@click.option("--force", is_flag=True, help="Replace an existing bundle, once the new one is whole.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
@click.version_option(package_name="ropevit-export")
@click.pass_context
def cli(ctx: click.Context, /, **options: Any) -> None:
    """RoPE-ViT checkpoints to verified ONNX graphs and TensorRT engines.

    \b
    ropevit-export --model rope_mixed_deit_base --res 384
    """  # fmt: skip
    given = [
        max(each.opts, key=len)
        for each in ctx.command.params
        if each.name and ctx.get_parameter_source(each.name) == click.core.ParameterSource.COMMANDLINE
    ]
    if ctx.invoked_subcommand is not None:
        if given:
            raise UsageError(f"{ctx.invoked_subcommand} takes no {given[0]} before its name.")
        return
    if not given:
        click.echo(ctx.get_help())
        return
    _export(**options)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
def models(as_json: bool) -> None:
    """List the models by all their names: the paper's, and an example whose trained weights are in this package."""
    listed = (*MODELS, *EXAMPLES)
    if as_json:
        rows = [{"name": spec.name, "short": spec.short, "timm": spec.timm, "rope": spec.rope.kind} for spec in listed]
        click.echo(json.dumps(rows, indent=2))
        return
    widths = [max(len(getattr(spec, field) or "") for spec in listed) for field in ("short", "name")]
    for spec in listed:
        click.echo(f"{spec.short:{widths[0]}}  {spec.name:{widths[1]}}  {spec.timm or '-'}")


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--by-layer", "layers", is_flag=True, help="Name the first block where a graph leaves PyTorch in float64."
)
@click.option("--weights", metavar="PATH|random", help="With --by-layer: PyTorch's, if not where the manifest says.")
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
def check(bundle: Path, layers: bool, weights: str | None, as_json: bool) -> None:
    """Verify a bundle's files, and its graphs against the reference outputs it carries."""
    from ropevit_export import check as checking

    if weights and not layers:
        raise UsageError("--weights is for --by-layer: check alone needs no PyTorch.")
    if layers:
        _check_by_layer(bundle, weights, as_json)
        return

    with _quiet_libraries():
        reports = checking.check(bundle)
    if as_json:
        from ropevit_export.pipeline import parity_entry

        rows = [json.loads(parity_entry(each).model_dump_json()) for each in reports]
        click.echo(json.dumps({"bundle": str(bundle), "parity": rows}, indent=2, allow_nan=False))
    else:
        for each in reports:
            click.echo(each.sentence())
    failed = [each for each in reports if not each.passed]
    if failed:
        raise ParityError(failed[0].sentence())
    if not as_json:
        click.echo(f"{bundle}: every file as listed, {len(reports)} of {len(reports)} comparisons within tolerance")


@cli.command()
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE...", type=click.Path(path_type=Path))
@click.option(
    "--peer",
    "peers",
    multiple=True,
    type=click.Choice(["eager", "compile", "plain"]),
    help="The model in PyTorch, by torch.compile, or its plain torch.onnx.export; repeatable.",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    type=click.Choice(BACKENDS),
    default=("onnxruntime",),
    help="What runs bundles and plain exports; repeatable.  [default: onnxruntime]",
)
@click.option("--res", metavar="N|HxW", help="Image size  [default: the first of the first bundle].")
@click.option(
    "--batch", "batches", multiple=True, metavar="N", callback=_each(_count), help="Repeatable.  [default: 1]"
)
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True, help="Runs of every contender.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write the result there, as JSON.")
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
def bench(
    bundles: tuple[Path, ...], peers: tuple[Any, ...], backends: tuple[str, ...], res: str | None,
    batches: tuple[int, ...], rounds: int, out: Path | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Time bundles in turn with one another and with what else there is; ratios are to the first."""
    from ropevit_export import bench as benching

    resolution = Resolution.parse(res) if res else None
    entered = benching.contenders(bundles, tuple(dict.fromkeys(peers)), tuple(dict.fromkeys(backends)))
    batches = batches or (1,)
    stages = len(batches) * (len(entered) + benching.WARM_UP + rounds)
    with _quiet_libraries(), _progress(stages, quiet=quiet) as progress:
        result = benching.bench(entered, resolution=resolution, batches=batches, rounds=rounds, progress=progress)
    text = json.dumps(result.as_json(), indent=2)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
    if as_json:
        click.echo(text)
    else:
        _print_timings(result)


def _check_by_layer(bundle: Path, weights: str | None, as_json: bool) -> None:
    from ropevit_export.layers import by_layer

    with _quiet_libraries():
        found = by_layer(bundle, weights=weights)
    if as_json:
        rows = [{**dataclasses.asdict(each), "resolution": [each.resolution.height, each.resolution.width]}
                for each in found]  # fmt: skip
        click.echo(json.dumps({"bundle": str(bundle), "graphs": rows}))
    else:
        for each in found:
            click.echo(f"{each.runtime}:")
            for layer in each.errors:
                click.echo(f"  {layer.place:24} {layer.error:.2e}{'  <- jump' if layer == each.jump else ''}")
            click.echo(each.sentence())
    jumps = [each for each in found if each.jump is not None]
    if jumps:
        raise ParityError(jumps[0].sentence())


@cli.command(name="eval")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--data", required=True, metavar="DIR|digits", help="One folder a class, as ImageNet's; or the built-in digits."
)
@click.option("--weights", metavar="PATH|random", help="PyTorch's weights, if not where the manifest says.")
@click.option("--backend", type=click.Choice(BACKENDS), help="What runs the graphs  [default: as `check` does].")
@click.option("--res", metavar="N|HxW", help="One size  [default: all that the bundle names].")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only N images, spread over all classes.")
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
def evaluate(
    bundle: Path, data: str, weights: str | None, backend: str | None, res: str | None, limit: int | None,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Accuracy of a bundle's graphs beside PyTorch's, on the same images."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    from ropevit_export import evaluate as evaluating

    resolution = Resolution.parse(res) if res else None
    columns = (*Progress.get_default_columns()[:3], MofNCompleteColumn(), TimeRemainingColumn())
    with _quiet_libraries(), Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as bar:
        task = bar.add_task("images")
        rows = evaluating.evaluate(
            bundle, data, weights=weights, backend=backend, resolution=resolution, limit=limit,
            progress=lambda done, count: bar.update(task, completed=done, total=count),
        )  # fmt: skip
    if as_json:
        click.echo(
            json.dumps({"bundle": str(bundle), "data": data, "accuracy": [dataclasses.asdict(each) for each in rows]})
        )
    else:
        _print_accuracy(rows)


def _print_accuracy(rows: Sequence[Accuracy]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("contender", "runtime", "size", "images", "top-1 %", "top-5 %", "to PyTorch", "published")
    for each in rows:
        height, width = each.resolution
        table.add_row(
            each.contender,
            each.runtime,
            f"{height}x{width}",
            str(each.images),
            f"{each.top1:.2f}",
            "" if each.top5 is None else f"{each.top5:.2f}",
            f"{each.difference:+.2f} ± {each.standard_error:.2f}",
            "" if each.published is None else f"{each.published:.1f}",
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _print_timings(result: Benchmark) -> None:
    from rich.console import Console
    from rich.table import Table

    first = result.timings[0].contender
    table = Table("contender", "batch", "p50 ms", "p90", "p99", "images/s", f"of {first}", "quartiles", "peak MB")
    for each in result.timings:
        s = each.summary()
        table.add_row(
            each.contender,
            str(each.batch),
            *(f"{s[key]:.1f}" for key in ("p50_ms", "p90_ms", "p99_ms", "images_per_second")),
            f"{s['ratio']:.3f}",
            f"{s['ratio_q25']:.3f}–{s['ratio_q75']:.3f}",
            str(each.peak_mb or ""),
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    machine = result.machine
    cpu = machine.get("model_name") or machine["processor"]
    click.echo(f"{result.resolution}, {result.rounds} rounds in turn, {cpu}, {machine['cores']} cores")
    for each in {each.contender: each for each in result.timings}.values():
        click.echo(f"  {each.contender}: {each.runtime}")


def _export(
    *, model: str | None, res: tuple[Resolution, ...], batch: str, engine: tuple[str, ...], sm: tuple[str, ...],
    out: Path | None, force: bool, as_json: bool, quiet: bool, **rest: Any,
) -> None:  # fmt: skip
    if not model:
        raise UsageError("no model: give --model NAME; `ropevit-export models` lists them.")
    request = Request(
        model=find_model(model),
        resolutions=res,
        batch=Dim.parse(batch),
        engines=engine,
        targets=tuple(dict.fromkeys(sm)),
        **rest,
    )
    from ropevit_export import pipeline

    with _quiet_libraries(), _progress(pipeline.stage_count(request), quiet=quiet) as progress:
        bundle = pipeline.export(request, out=out, force=force, progress=progress)
    if as_json:
        click.echo(
            json.dumps({"bundle": str(bundle.path), "remark": bundle.remark, **bundle.manifest.model_dump(mode="json")})
        )
    else:
        _print_summary(bundle)


def _print_summary(bundle: Bundle) -> None:
    from rich.console import Console
    from rich.table import Table

    from ropevit_export.bundle.report import UNTRAINED

    manifest = bundle.manifest
    # of several sizes the one nearest to its limit
    parity = {each.artifact: each for each in sorted(manifest.parity, key=lambda each: each.metrics["relative"] or 0)}
    table = Table("artifact", "size", "batch", "precision", "MB", "max error", "of limit", "parity")
    for each in manifest.artifacts:
        parts = [each.path, *(part.path for part in each.files if part.kind == "weights")]
        size = sum((bundle.path / part).stat().st_size for part in parts) / 1e6
        row = parity.get(each.path)
        verdict = ["", "", "not run here"]
        if row is not None:
            error = row.metrics["relative"] or 0.0
            verdict = [f"{row.metrics['max_abs']:.1e}", f"{error / row.tolerance['relative']:.1%}", "passed"]
        sizes = ", ".join(f"{h}x{w}" for h, w in each.resolutions)
        if each.dynamic:
            sizes = f"up to {each.dynamic.max[0]}x{each.dynamic.max[1]}"
        batch = str(Dim(**each.batch.model_dump()))
        table.add_row(each.path, sizes, batch, each.precision, f"{size:.1f}", *verdict)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if bundle.remark:
        click.echo(bundle.remark)
    click.echo(f"{bundle.path}" + ("" if manifest.weights.trained else f"  {UNTRAINED}"))


@contextlib.contextmanager
def _progress(stages: int, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal, one line a stage elsewhere; both on stderr."""
    from rich.console import Console
    from rich.logging import RichHandler
    from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn

    console = Console(stderr=True, quiet=quiet)
    log = logging.getLogger("ropevit_export")
    if not console.is_terminal:
        handler: logging.Handler = logging.StreamHandler(sys.stderr)
    else:
        handler = RichHandler(console=console, show_time=False, show_level=False, show_path=False)
    if not quiet:
        log.addHandler(handler)
        log.setLevel(logging.INFO)
    try:
        with Progress(
            SpinnerColumn(), *Progress.get_default_columns()[:2], TimeElapsedColumn(), console=console, transient=True,
            disable=quiet or not console.is_terminal,
        ) as bar:  # fmt: skip
            task = bar.add_task("", total=stages)
            done = iter(range(stages + 1))

            def advance(stage: str) -> None:
                if _Interrupted.arrived:
                    raise _Interrupted
                bar.update(task, description=stage, completed=next(done, stages))

            yield advance
    finally:
        log.removeHandler(handler)


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """What libraries print goes nowhere near our stdout, and their warnings are not the user's."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        yield


if __name__ == "__main__":
    main()
