"""The three kinds of files: how each is written, and read again to be checked.

    onnx          the whole graph, for ONNX Runtime and others
    torch         the whole graph as a torch.export program, for torch.export.load
    safetensors   weights alone under timm's names, metadata in the header

A graph holds normalization, temperature and softmax. Reading a torch.export program unpickles parts
of it, so only those of people one trusts should be read; safetensors runs no code, and cannot hold
a graph.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from kdfm_ray.export.graph import Classifier, rebuild, weights
from kdfm_ray.models.weights import first_line
from kdfm_ray.types import RunFailed, UserError

Format = Literal["onnx", "torch", "safetensors"]
SUFFIX: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}
ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")

# uint8 [n, h, w, c] -> float32 [n, k]
Run = Callable[[np.ndarray], np.ndarray]


def as_format(kind: str) -> Format:
    """A format by its name.

    Raises:
        UserError: unknown, or its packages are not installed: says how to install them.
    """
    if kind not in SUFFIX:
        raise UserError(f"--format {kind}: choose {', '.join(SUFFIX)}")
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None] if kind == "onnx" else []
    if missing:
        raise UserError(
            f"--format onnx needs {', '.join(missing)}: pip install 'kdfm_ray[onnx]' (or "
            f"pip install {' '.join(ONNX_PACKAGES)})"
        )
    return kind


def write(kind: Format, classifier: Classifier, texts: dict[str, str], path: Path) -> None:
    """Write the classifier to ``path``.

    Raises:
        RunFailed: the network's code cannot be traced to a graph: says what to do.
    """
    if kind == "onnx":
        _write_onnx(classifier, texts, path)
    elif kind == "torch":
        program = _traced(kind, classifier)
        torch.export.save(program, path, extra_files=texts)
    else:
        save_file(weights(classifier.network), path, metadata=texts)


def opened(kind: Format, path: Path) -> Run:
    """The file as a function of images, by means that its users have."""
    if kind == "onnx":
        return _onnx_session(path)
    classify = torch.export.load(path).module() if kind == "torch" else read_safetensors(path)

    @torch.inference_mode()
    def run(images: np.ndarray) -> np.ndarray:
        probs: np.ndarray = classify(torch.from_numpy(images)).numpy()
        return probs

    return run


def read_safetensors(path: Path) -> Classifier:
    """The classifier in a file of the format ``safetensors``.

    Raises:
        ValueError: it is no such file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no export of kdfm_ray: {error}") from error
    return rebuild(state, texts)


def _traced(kind: Format, classifier: Classifier) -> torch.export.ExportedProgram:
    """The classifier as a graph that takes any number of images."""
    spec = classifier.network.spec
    size = (2, spec.image_size, spec.image_size, spec.image_channels)
    example = torch.arange(int(np.prod(size))).remainder(256).to(torch.uint8).view(size)
    batch = torch.export.Dim("n", min=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter's own parts
            program = torch.export.export(
                classifier, (example,), dynamic_shapes={"images": {0: batch}}
            )
    except Exception as error:  # the code of a thousand backbones meets a tracer
        raise RunFailed(
            f"torch.export cannot make a graph of {spec.name}, which --format {kind} needs "
            f"({first_line(error)}): --format safetensors writes its weights without one, or "
            "train another model.name, such as efficientnet_b0"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # where the code lay on this machine
    return program


def _write_onnx(classifier: Classifier, texts: dict[str, str], path: Path) -> None:
    import onnx

    traced = _traced("onnx", classifier)
    with warnings.catch_warnings(), _quiet("torch.onnx", "onnxscript"):
        warnings.simplefilter("ignore")  # of the exporter's own parts
        program: Any = torch.onnx.export(
            traced,
            dynamo=True,
            input_names=["images"],
            output_names=["probs"],
            verbose=False,
        )
    model = program.model_proto
    for node in [*model.graph.node, *(n for f in model.functions for n in f.node)]:
        del node.metadata_props[:]  # where the code lay on this machine
        node.doc_string = ""
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]:
        del value.metadata_props[:]
    onnx.helper.set_model_props(model, texts)
    model.producer_name = "kdfm_ray"
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _onnx_session(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> np.ndarray:
        probs: np.ndarray = session.run(["probs"], {"images": images})[0]
        return probs

    return run


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Loggers that say nothing but errors for the block."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
