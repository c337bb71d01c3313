"""Exports a trained network as one file: ONNX, TorchScript or plain weights."""

from __future__ import annotations

import importlib
import io
import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedsight.core.errors import FedSightError, ModelError, StoreError
from fedsight.core.files import write_atomically
from fedsight.data.text.texts import FIRST, NUMBERS
from fedsight.inference.onnx_suppression import recorded, translations
from fedsight.inference.recipe import outputs, recipe
from fedsight.inference.saved import Saved
from fedsight.models.detector import Detector
from fedsight.models.heatmap import Suppression, kept_unrolled
from fedsight.models.norms import thawed_state

Format = Literal["onnx", "torchscript", "safetensors"]
SUFFIX: dict[Format, str] = {"onnx": ".onnx", "torchscript": ".pt", "safetensors": ".safetensors"}
TOLERANCE = 1e-5  # of probabilities
_ONNX_LIMIT = 2**31 - 2**20  # bytes; one protobuf message holds no more than 2 GiB


class ExportedModel(nn.Module):
    """Maps images [n, c, h, w] in [0, 1], or texts as word numbers [n, 1, 1, length], to
    probabilities [n, classes]; a detector to boxes [n, m, 4], scores [n, m] and classes [n, m]."""

    mean: Tensor
    std: Tensor

    def __init__(self, saved: Saved, suppress: Suppression = kept_unrolled) -> None:
        super().__init__()
        self.model = saved.module
        self.suppress = suppress  # how a detector removes duplicates
        self.task = saved.task
        self.look = saved.preprocess.look
        self.expected = saved.preprocess.mean, saved.preprocess.std
        shape = (1, saved.preprocess.channels, 1, 1)
        self.register_buffer("mean", torch.tensor(saved.preprocess.mean).view(shape))
        self.register_buffer("std", torch.tensor(saved.preprocess.std).view(shape))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Normalises, then asks the task, or the detector itself."""
        if self.look is not None:
            x = self.look.apply(x, self.expected[0], self.expected[1])
        x = (x - self.mean) / self.std
        if not isinstance(self.model, Detector):
            return self.task.predict(self.model, x)
        found = self.model.find_by(x, self.suppress)
        return found[:, :, 2:], found[:, :, 1], found[:, :, 0].long()


def export(saved: Saved, format: Format, path: Path) -> Path:
    """Write `saved` to `path`, whole or not at all; returns `path`.

    onnx and torchscript take `pixels` [n, c, h, w] float32 in [0, 1] for any n, normalise inside,
    and give `probabilities` [n, classes]; for texts they take `words` [n, 1, 1, length] float32,
    the word numbers of `fedsight.data.text.texts`. A detector gives `boxes` [n, 100, 4] in pixels
    of the input, `scores` and `classes` [n, 100], highest score first, after non-maximum
    suppression; a score of 0 is padding. Before the file is written, its answers are compared with
    the network's, to 1e-5. safetensors holds only the weights, with frozen norms as BatchNorms. All
    three carry `metadata`.

    Raises FedSightError when a package is missing, ModelError when the network cannot be expressed
    in the format, StoreError when the file cannot be written.
    """
    write = {"onnx": _onnx, "torchscript": _torchscript, "safetensors": _safetensors}[format]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot create the folder {path.parent}: {error.strerror or error}",
            "choose another place for the file",
        ) from error
    write_atomically(path, write(saved))
    return path


def metadata(saved: Saved, normalises: bool = True) -> dict[str, str]:
    """The metadata in the file, as JSON texts: how to prepare inputs and how to read answers.

    `labels` are the class names in the order of the answers, `preprocess` the fields of
    `fedsight.data.base.Preprocess`, `recipe` the same in steps for other programs, `task` and
    `model` the settings of the run. `normalises` says whether the file itself does.
    """
    return {
        "recipe": json.dumps(recipe(saved, normalises), ensure_ascii=False),
        "labels": json.dumps(saved.classes, ensure_ascii=False),
        "preprocess": json.dumps(asdict(saved.preprocess)),
        "task": json.dumps(saved.task.table()),
        "model": json.dumps(dict(saved.model)),
        "name": saved.name,
        "fingerprint": saved.fingerprint,
    }


def _safetensors(saved: Saved) -> bytes:
    from safetensors.torch import save

    # Clones: the format refuses tensors that share memory (tied, or views of the flat vector).
    state = {
        name: value.detach().clone(memory_format=torch.contiguous_format)
        for name, value in thawed_state(saved.module).items()
    }
    return save(state, metadata(saved, normalises=False))


def _onnx(saved: Saved) -> bytes:
    onnx = _extra("onnx")
    _extra("onnxscript")
    if sum(value.numel() * 4 for value in saved.module.state_dict().values()) > _ONNX_LIMIT:
        raise ModelError(
            f"the network of '{saved.name}' is larger than the 2 GiB of one ONNX file",
            "export it with --format safetensors",
        )
    model = ExportedModel(saved, recorded).eval()
    name = "words" if saved.preprocess.modality == "text" else "pixels"
    try:
        with torch.no_grad():
            model(_example(saved, 1))  # its own error, before the exporter wraps it
        with warnings.catch_warnings():
            # PyTorch 2.11 warns of what its own exporter still does.
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
            program: Any = torch.onnx.export(
                model,
                (_example(saved, 2),),
                dynamo=True,
                input_names=[name],
                output_names=list(outputs(saved)),
                dynamic_shapes={"x": {0: torch.export.Dim("n")}},
                custom_translation_table=translations(),
                verbose=False,
            )
    except ModelError:
        raise
    except Exception as error:  # the exporter's errors have no common root but this
        raise _impossible(saved, "ONNX", error) from error
    proto = program.model_proto
    onnx.helper.set_model_props(proto, metadata(saved))
    data: bytes = proto.SerializeToString()
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError:  # it is needed only for the comparison
        return data
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def answer(x: Tensor) -> Any:
        found = [torch.from_numpy(one) for one in session.run(None, {name: x.numpy()})]
        return found[0] if len(found) == 1 else tuple(found)

    _compare(saved, model, answer, "ONNX")
    return data


def _torchscript(saved: Saved) -> bytes:
    model = ExportedModel(saved).eval()
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # PyTorch deprecates TorchScript in favour of torch.export; it is offered because
        # programs in C++ and on phones still read it.
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated")
        # Whatever tracing takes as constant is checked below with other batch sizes.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        try:
            with torch.no_grad():
                traced = torch.jit.trace(model, _example(saved, 2), check_trace=False)
        except ModelError:
            raise
        except Exception as error:  # third-party code is traced: anything may be raised
            raise _impossible(saved, "TorchScript", error) from error
        torch.jit.save(traced, buffer, _extra_files=metadata(saved))
    _compare(saved, model, traced, "TorchScript")
    return buffer.getvalue()


def _compare(saved: Saved, model: ExportedModel, answer: Any, title: str) -> None:
    """Raise ModelError unless `answer(x)` equals `model(x)`, for batches of one and of five."""
    for count in (1, 5):
        x = _example(saved, count)
        with torch.inference_mode():
            ours, theirs = model(x), answer(x)
            apart = _apart(ours, theirs)
            if apart <= TOLERANCE:
                continue
            # Some networks amplify rounding beyond that; then float64 is the reference, and the
            # file may deviate from it by up to ten times as much as PyTorch does.
            exact = _exact(model, x)
            if _apart(theirs, exact) <= 10 * max(_apart(ours, exact), TOLERANCE / 10):
                continue
        raise ModelError(
            f"the {title} file of '{saved.name}' deviates from the network by {apart:.1e} and was "
            "not written",
            "export it in another format, and please report this model",
        )


def _exact(model: ExportedModel, x: Tensor) -> Any:
    """`model(x)` in float64. The network itself is turned there and back, which changes no bit of
    its float32: a network that was exported as ONNX cannot always be copied."""
    with torch.inference_mode(False), torch.no_grad():  # or its weights could not learn any more
        try:
            return model.double()(x.double())
        finally:
            model.float()


def _apart(a: Any, b: Any) -> float:
    """The largest difference of two answers: of probabilities, or of scores and boxes.

    The boxes are compared as shares of 100 pixels, and only where an object is.
    """
    if isinstance(a, Tensor):
        return float((a.double() - b.double()).abs().max())
    (boxes, scores, classes), (others, sure, labels) = a, b
    seen = (scores.double() > 0) & (classes == labels)
    gap = (boxes.double() - others.double()).abs().amax(-1)[seen] / 100
    apart = (scores.double() - sure.double()).abs().max()
    return max(float(apart), float(gap.max()) if len(gap) else 0.0)


def _example(saved: Saved, count: int) -> Tensor:
    seen, draws = saved.preprocess, torch.Generator().manual_seed(count)
    shape = (count, seen.channels, seen.height, seen.width)
    if seen.modality == "text":
        return torch.randint(FIRST + NUMBERS, shape, generator=draws).float()
    return torch.rand(shape, generator=draws)


def _impossible(saved: Saved, title: str, error: Exception) -> ModelError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ModelError(
        f"the network of '{saved.name}' cannot be expressed in {title}: {reason}",
        "export it with --format safetensors",
    )


def _extra(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise FedSightError(
            f"writing ONNX needs the package '{package}', which is not installed",
            "run: pip install 'fedsight[export]'",
        ) from error
