"""The model as trained, in PyTorch (`families.Knowledge.reference`): what every artifact is compared with."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from ropevit_export.errors import BackendError
from ropevit_export.models.families import FAMILIES
from ropevit_export.models.spec import ModelSpec
from ropevit_export.values import DTYPES, Output, Precision, Resolution, Weights

if TYPE_CHECKING:
    from ropevit_export.values import Array, FloatArray


class Reference(nn.Module):
    """The unfolded model, which answers with one tensor or, where several are asked for, a tuple in their order."""

    def __init__(self, model: nn.Module, spec: ModelSpec, outputs: Sequence[Output]) -> None:
        super().__init__()
        self.model: Any = model
        self.outputs = tuple(outputs)
        self.answers = FAMILIES[spec.family].answers

    def forward(self, image: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """image (B, 3, H, W), normalised → see `values.Output`."""
        answers = self.answers(self.model, image, self.outputs)
        return answers[0] if len(answers) == 1 else tuple(answers)


def build(spec: ModelSpec, weights: Weights, resolution: Resolution, outputs: Sequence[Output]) -> Reference:
    """The unfolded model at one size, in `eval()`.

    `weights` are of that size (`resize.py`); the module shares their memory.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import timm  # noqa: F401  warns when it is imported first
    model = FAMILIES[spec.family].reference(spec, weights, resolution)
    _fill_buffers(model)
    return Reference(model, spec, outputs).eval().requires_grad_(False)


def _fill_buffers(model: nn.Module) -> None:
    """Compute the buffers that no checkpoint holds, by timm's own hook; a buffer that no hook fills stays NaN."""
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                blank = torch.full_like(buffer, math.nan if buffer.is_floating_point() else -1, device="cpu")
                module.register_buffer(name, blank, persistent=False)
        if hasattr(module, "init_non_persistent_buffers"):
            cast("Any", module).init_non_persistent_buffers()


class Rounded(nn.Module):
    """A model computed in another number format, between float32 images and float32 answers."""

    def __init__(self, model: Reference, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model.to(dtype), dtype

    def forward(self, image: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        answer = self.model(image.to(self.dtype))
        return answer.float() if isinstance(answer, torch.Tensor) else tuple(each.float() for each in answer)


def rounded(model: Reference, precision: Precision) -> nn.Module:
    """The model in the precision as PyTorch users have it, weights and all. The model given is used up."""
    return model if precision == "fp32" else Rounded(model, getattr(torch, DTYPES[precision]))


def batch_runner(
    model: Reference,
    *,
    compiled: bool,
    device: str = "cpu",
    precision: Precision = "fp32",
    eight_bits: bool = False,
) -> Callable[[FloatArray], list[FloatArray]]:
    """The model as PyTorch users run it, eagerly or by `torch.compile`: images (B, 3, H, W) → answers, in order.

    Both are on the host. Float32 is float32: without TF32. `eight_bits`: linear layers by torchao, their inputs'
    ranges measured as they run; raises BackendError where it is not installed.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise BackendError(f"PyTorch {torch.__version__} finds no GPU: install a build for CUDA.")
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    placed = rounded(model, precision).to(device)
    if eight_bits:
        _quantize(placed)
    call: Any = torch.compile(placed) if compiled else placed

    def run_batch(images: FloatArray) -> list[FloatArray]:
        with torch.inference_mode():
            return [answer.cpu().numpy() for answer in _listed(call(torch.from_numpy(images).to(device)))]

    return run_batch


def linear_shapes(model: Reference, images: FloatArray) -> list[tuple[int, int, int]]:
    """(tokens of the batch, inputs, outputs) of every linear layer that runs, in order, the patches' among them."""
    found: list[tuple[int, int, int]] = []

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            found.append((output[:, 0].numel(), module.weight[0].numel(), len(module.weight)))
        elif isinstance(module, nn.Linear):
            found.append((inputs[0].numel() // module.in_features, module.in_features, module.out_features))

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    with torch.inference_mode():
        model(torch.from_numpy(images))
    for hook in hooks:
        hook.remove()
    return found


def _quantize(model: nn.Module) -> None:
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ImportError as error:
        raise BackendError(f"torchao can't be imported ({error}): pip install 'ropevit-export[peers]'") from error
    quantize_(model, Int8DynamicActivationInt8WeightConfig())


def block_values(model: Reference, spec: ModelSpec, images: FloatArray) -> dict[str, Array]:
    """What the model computes on the way, in float64, each (B, tokens, channels), in order: of every block its first
    norm, the sum after attention, its second norm and its output, as `blocks.7.norm1`, `.attention`, `.norm2`, `.mlp`.
    Tokens are in the order of a folded graph (`trace.swin`).
    """
    found: dict[str, Array] = {}

    def keep(name: str, size: Sequence[int] = (), group: tuple[int, int] = (1, 1)) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor | None = None) -> None:
            tensor = inputs[0] if output is None else output
            if size:  # of a map
                (high, wide), (rows, columns) = size, group
                split = (-1, high // rows, rows, wide // columns, columns, tensor.shape[-1])
                tensor = tensor.reshape(split).transpose(2, 3)
            found[name] = tensor.reshape(len(images), -1, tensor.shape[-1]).numpy()

        return hook

    double = copy.deepcopy(model).double()
    for index, (prefix, _) in enumerate(spec.blocks):
        block = double.model.get_submodule(prefix.rstrip("."))
        unit = (2, 2) if spec.merges_after(index) else block.window_size if spec.window_of else ()
        order = (block.input_resolution, unit) if unit else ()
        block.attn.register_forward_pre_hook(keep(f"blocks.{index}.norm1"))  # in Swin already in windows
        block.norm2.register_forward_pre_hook(keep(f"blocks.{index}.attention", *order))
        block.norm2.register_forward_hook(keep(f"blocks.{index}.norm2", *order))
        block.register_forward_hook(keep(f"blocks.{index}.mlp", *order))
    with torch.inference_mode():
        double(torch.from_numpy(images).double())
    return found


def describe() -> str:
    """PyTorch as it is here, with timm beside it; raises what importing them raises."""
    import timm

    text = f"PyTorch {torch.__version__}, timm {timm.__version__}"
    if not torch.cuda.is_available():
        return f"{text}, {f'for CUDA {torch.version.cuda}, finds no GPU' if torch.version.cuda else 'for CPUs'}"
    major, minor = torch.cuda.get_device_capability()
    return f"{text}, CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}, SM {major}{minor}"


def run(model: Reference, images: FloatArray) -> dict[str, FloatArray]:
    """Answers by output to images (B, 3, H, W), one by one, so that memory doesn't grow with their number."""
    with torch.inference_mode():
        answers = [_listed(model(torch.from_numpy(image[None]))) for image in images]
    return {
        output.name: torch.cat([answer[index] for answer in answers]).numpy()
        for index, output in enumerate(model.outputs)
    }


def _listed(answer: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [answer] if isinstance(answer, torch.Tensor) else list(answer)
