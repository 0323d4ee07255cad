"""`ropevit-export --model NAME --res N`: the main job, and the group that the verbs belong to."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ropevit_export.cli import recipes
from ropevit_export.cli.options import ENGINES, channels, crop, list_of, model_names, one, target, window
from ropevit_export.cli.terminal import add_row, progress_bar, say, show
from ropevit_export.errors import UsageError
from ropevit_export.formats import IO_PRECISIONS, PRECISIONS
from ropevit_export.machine.process import quiet_libraries
from ropevit_export.models.spec import ModelSpec
from ropevit_export.models.zoo import find_model
from ropevit_export.request import EngineOptions, Request, TimingCache
from ropevit_export.values import Dim, Resolution

if TYPE_CHECKING:
    from ropevit_export.bundle.manifest import Bundle


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 good, 1 a stage failed, 2 usage, 3 out of tolerance.",
)
@click.option(
    "--model",
    multiple=True,
    metavar="NAME",
    callback=list_of(str),
    shell_complete=model_names,
    help="Official, short or timm name, or a repository of the hub; `ropevit-export models` lists them.",
)
@click.option(
    "--model-args",
    metavar="A=1[,B=2...]",
    help="Of --model timm:NAME, any name of timm's class Eva, or Eva itself: arguments of its constructor, such as "
    "depth=6,embed_dim=192.",
)
@click.option(
    "--res",
    multiple=True,
    metavar="N|HxW",
    callback=list_of(Resolution.parse),
    help="Image size; repeatable, commas too.",
)
@click.option(
    "--rope",
    type=click.Choice(["baked", "dynamic", "inputs"]),
    default="baked",
    show_default=True,
    help="Rotary tables: constants, one graph a size (baked); or one graph for every size up to the largest --res, "
    "which makes its tables itself (dynamic) or is fed them by your program (inputs). Swin: baked only.",
)
@click.option(
    "--weights",
    default="auto",
    show_default=True,
    metavar="auto|pretrained|random|PATH",
    help="auto: cached or hub weights, random ones where no hub can be reached. pretrained: no weights is an error.",
)
@click.option(
    "--weights-key",
    metavar="NAME",
    help="Of a file with several dictionaries that fit, such as teacher and student, the one to take.",
)
@click.option(
    "--window",
    metavar="N|RxC",
    callback=one(window),
    help="Swin: tokens a side of its windows, where it was trained with others than size // 32  "
    "[default: what the file's bias tables say].",
)
@click.option(
    "--revision",
    metavar="COMMIT",
    help="The hub's commit to take weights from  [default: the cached one, else the newest].",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    show_default=True,
    help="Number format of the graph itself.",
)
@click.option(
    "--io-precision",
    type=click.Choice(IO_PRECISIONS),
    default="fp32",
    show_default=True,
    help="Of floating-point inputs and outputs: fp32, or the 16-bit format that the graph computes in.",
)
@click.option("--calib", metavar="DIR|digits", help="Images of the job, which int8 and fp8 ranges are measured on.")
@click.option(
    "--skip-unreadable", is_flag=True, help="Leave pictures of --calib out that can't be read, and count them."
)
@click.option(
    "--batch",
    default="1",
    show_default=True,
    metavar="N|MIN:OPT:MAX",
    callback=one(Dim.parse),
    help="Static or dynamic batch.",
)
@click.option(
    "--engine",
    multiple=True,
    type=click.Choice(ENGINES),
    default=("auto",),
    help="Repeatable. auto: TensorRT where a GPU is, else TensorRT-RTX, built ahead of time.  [default: auto]",
)
@click.option(
    "--sm",
    multiple=True,
    metavar="CC",
    callback=list_of(target),
    help="Compute capabilities an engine must run on, such as 86,89,120.  [default: all but 75]",
)
@click.option("--workspace", type=click.IntRange(1, 2**20), metavar="MB", help="Most scratch memory a kernel may take.")
@click.option(
    "--hardware-compatibility",
    type=click.Choice(["none", "ampere-plus", "same-cc"]),
    default="none",
    show_default=True,
    help="TensorRT: run on every GPU since Ampere, or on all of the same compute capability.",
)
@click.option("--version-compatible", is_flag=True, help="Later releases of the library may run the engine.")
@click.option("--strip-weights", is_flag=True, help="Leave weights out of the engine; the ONNX file puts them back.")
@click.option("--refit", is_flag=True, help="The engine's weights can be exchanged.")
@click.option("--tf32", is_flag=True, help="Engines may compute float32 products with 10-bit mantissas.")
@click.option(
    "--timing-cache",
    metavar="FILE[@SHA256]",
    callback=lambda ctx, param, value: value and TimingCache.parse(value),
    help="TensorRT: kernels timed in earlier builds; pinned by its hash, a build that needs more fails.",
)
@click.option("--cache", type=click.Path(path_type=Path), metavar="DIR", help="Keep engines there, and take them.")
@click.option(
    "--require-fused-attention",
    is_flag=True,
    help="Fail where an engine computes a block's attention in several kernels.",
)
@click.option(
    "--output",
    metavar="KIND[,KIND...]",
    help="logits: the head's · pooled: the authors' global feature · cls: the class token · tokens: all, normalised · "
    "features:2,5,8,11: maps of patch tokens after those blocks.  [default: logits, or pooled without a head]",
)
@click.option(
    "--pool",
    type=click.Choice(["token", "avg", "map"]),
    help="What is pooled into the global feature and fed to the head: the class token, the mean over patches, or "
    "attention pooling  [default: as the authors do].",
)
@click.option("--features-raw", is_flag=True, help="Features without the final norm.")
@click.option(
    "--mean",
    metavar="R,G,B",
    callback=one(channels),
    help="Mean of the images that a fine-tuned model was trained on, 0 to 1: three numbers, or one for all.",
)
@click.option("--std", metavar="R,G,B", callback=one(channels), help="Their standard deviation.")
@click.option("--interpolation", type=click.Choice(["bicubic", "bilinear"]), help="How they were resized.")
@click.option(
    "--crop",
    metavar="RATIO|squash",
    callback=one(crop),
    help="Side of the centre crop over the side resized to; or squash: resize to the size, whatever the proportions. "
    "[default of all four: the model's own, which `models --json` shows]",
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
@click.option(
    "--single-file", is_flag=True, help="Weights in the ONNX file itself, up to 2 GB, instead of one beside the graphs."
)
@click.option(
    "--tune", is_flag=True, help="Then find how this machine runs the bundle fastest, as `tune` does by itself."
)
@click.option("--force", is_flag=True, help="Replace an existing bundle, once the new one is whole.")
@click.option(
    "--recipe",
    multiple=True,
    metavar="FILE",
    callback=list_of(Path),
    help="TOML with the options of a deployment target; what is typed as well wins. engines/ holds some.",
)
@click.option(
    "--matrix",
    is_flag=True,
    help="A bundle for every --model, --res and --recipe, all three repeatable and with commas, in the folder --out; "
    "those that an earlier run has finished stay.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    metavar="N",
    help="With --matrix: bundles built at once  [default: 1; with --ray what Ray finds room for].",
)
@click.option(
    "--ray", is_flag=True, help="With --matrix: each bundle is a Ray task; --out must be on a shared filesystem."
)
@click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
@click.version_option(package_name="ropevit-export")
@click.pass_context
def cli(ctx: click.Context, /, **options: Any) -> None:
    """Checkpoints of rotary vision transformers to verified ONNX graphs and TensorRT engines.

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
        say(ctx.get_help())
        return
    if options["matrix"]:
        from ropevit_export.cli import matrix

        if options["tune"]:
            raise UsageError("--tune is for one bundle: leave it out of --matrix, and `tune` each where it will run.")
        matrix.build(ctx, _request)
    else:
        _export(_one_bundle(ctx))


def _one_bundle(ctx: click.Context) -> dict[str, Any]:
    """All options, a recipe's among them, where only one bundle is asked for."""
    for name in ("jobs", "ray"):
        if ctx.params[name]:
            raise UsageError(f"--{name} is for --matrix: add it, or leave both out.")
    given = ctx.params["recipe"]
    if len(given) > 1:
        raise UsageError(f"{len(given)} recipes: give one, or add --matrix for a bundle of each.")
    options = recipes.options(ctx, given[0] if given else None)
    models = options.pop("model")
    if len(models) > 1:
        raise UsageError(f"{len(models)} models: give one, or add --matrix for a bundle of each.")
    return options | {"model": models[0] if models else ""}


def _request(options: Mapping[str, Any]) -> Request:
    """What is to be built, from all options."""
    rest = {name: value for name, value in options.items() if name not in recipes.OF_THE_CALL}
    model, res, engine, sm = (rest.pop(name) for name in ("model", "res", "engine", "sm"))
    if not model:
        raise UsageError("no model: give --model NAME; `ropevit-export models` lists them.")
    if (arguments := rest.pop("model_args")) is not None:
        if not model.startswith("timm:"):
            raise UsageError(f"--model-args is for --model timm:NAME, but the model is {model}: add timm: or leave it.")
        model = f"{model}:{arguments}"
    changes = {name: rest.pop(name) for name in ("mean", "std", "interpolation")}
    if (cut := rest.pop("crop")) is not None:
        changes |= dict(zip(("crop", "crop_mode"), cut, strict=True))
    spec = _with_transform(find_model(model), **changes)
    return Request(
        model=dataclasses.replace(spec, own_window=rest["window"]),
        resolutions=res,
        engines=engine,
        targets=tuple(dict.fromkeys(sm)),
        engine_options=EngineOptions(**{each.name: rest.pop(each.name) for each in dataclasses.fields(EngineOptions)}),
        **rest,
    )


def _with_transform(model: ModelSpec, **changes: Any) -> ModelSpec:
    """The model with what was given of its images' transform, where it was fine-tuned on others."""
    given = {name: value for name, value in changes.items() if value is not None}
    return dataclasses.replace(model, transform=dataclasses.replace(model.transform, **given))


def _export(options: Mapping[str, Any]) -> None:
    request, quiet = _request(options), options["quiet"]
    from ropevit_export import pipeline, planning
    from ropevit_export.bundle import manifest

    with quiet_libraries(), progress_bar(planning.stage_count(request), quiet=quiet) as progress:
        bundle = pipeline.export(
            request, out=options["out"], force=options["force"], cache=options["cache"], progress=progress
        )
    for choice in bundle.manifest.choices:
        say(choice, err=True)
    if options["tune"]:
        from ropevit_export.cli import tune

        tune.of_new(bundle, shown=not options["as_json"], quiet=quiet)
    if options["as_json"]:
        of_the_call = {"bundle": str(bundle.path), "remark": bundle.remark, "sha256": manifest.digest(bundle.path)}
        say(json.dumps({**of_the_call, **bundle.manifest.model_dump(mode="json")}))
    else:
        _print_summary(bundle)


def _print_summary(bundle: Bundle) -> None:
    from rich.table import Table

    from ropevit_export.bundle.manifest import digest
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
        add_row(table, each.path, sizes, batch, each.precision, f"{size:.1f}", *verdict)
    show(table, 120)
    if bundle.remark:
        say(bundle.remark)
    say(f"SHA-256 of the manifest, for check --sha256: {digest(bundle.path)}")
    say(f"{bundle.path}" + ("" if manifest.weights.trained else f"  {UNTRAINED}"))
