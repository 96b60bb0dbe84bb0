"""The prior's network in other engines, as a function of x_t at one timestep, each at its best.

All get the same weights, one static size, ``Work.threads`` threads, and the timestep as a constant
that they may fold. OpenVINO and ONNX Runtime read one ONNX file. int8 is what their own tools make
from ``Work.calibration`` without training (NNCF; ``quantize_static``: QDQ, a scale per output
channel), and torch.compile runs with frozen weights.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddfm_fast.priors.checkpoint import build_unet
from ddfm_fast.priors.load import load_prior
from ddfm_fast.priors.network import optimized
from ddfm_fast.priors.precision import PRECISIONS, cpu_has
from ddfm_fast.priors.unet import UNet

from .data import network, reference_unet

Forward = Callable[[], Tensor]
CPU = torch.device("cpu")
CHANNELS = 3
"""channels of eps; the variance's half is left out if an engine can do so"""


class AtOneTimestep(nn.Module):
    """The plain network with all that depends on t as constants."""

    def __init__(self, unet: UNet, timestep: int):
        super().__init__()
        self.unet, self.step = unet, unet.conditioning(torch.tensor([timestep]))[0]

    def forward(self, x: Tensor) -> Tensor:
        """Predict eps from x_t [N, 3, H, W]; same shape."""
        return self.unet.run(x, self.step, CHANNELS)


@dataclass(frozen=True)
class Work:
    """A network, its input x_t [N, 3, H, W], and what engines may know beforehand."""

    network: str
    timestep: int
    x: Tensor
    calibration: list[Tensor]
    """pictures of the size of ``x``, for int8; none of them is timed"""
    threads: int
    folder: Path
    """for the files that engines read"""

    @property
    def array(self) -> np.ndarray:
        return self.x.numpy()

    @cached_property
    def onnx(self) -> Path:
        """The network in float32 for this size, written on first use."""
        path = self.folder / "network.onnx"
        module = AtOneTimestep(_of_eps(network(self.network)), self.timestep).eval()
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                module, (self.x,), dynamo=True, verbose=False,
                input_names=["x"], output_names=["eps"],
            )  # fmt: skip
            program.save(str(path))
        return path


def _of_eps(unet: UNet) -> UNet:
    """Copy a network in its authors' form, without the variance's half of its last layer."""
    state = {key: value.detach().contiguous() for key, value in unet.state_dict().items()}
    rows = CHANNELS * unet.config.pixel_unshuffle**2
    state |= {key: state[key][:rows] for key in ("out.2.weight", "out.2.bias")}
    return build_unet(replace(unet.config, out_channels=CHANNELS), state)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the chatter of exporters and quantizers off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def ours(work: Work, precision: str) -> Forward:
    """Return our engine, as ``load_prior`` gives it."""
    prior = load_prior(network(work.network), device=CPU, dtype=precision)
    step = prior.conditioning(torch.tensor([work.timestep]))[0]
    return lambda: prior.eps(work.x, step)


def official(work: Work, precision: str) -> Forward:
    """Return the authors' module, operator by operator."""
    module, low = reference_unet(work.network, CPU), PRECISIONS[precision]
    module.w = {key: value.to(low) for key, value in module.w.items()}
    t, x = torch.full((len(work.x),), work.timestep), work.x.to(low)
    return lambda: module(x, t)[:, :CHANNELS]


def inductor(work: Work, precision: str) -> Forward:
    """Compile the plain network by torch.compile in our layout, which is faster by measurement."""
    low = PRECISIONS[precision]
    unet = optimized(network(work.network), CPU, low)
    x = work.x.to(low, memory_format=torch.channels_last)
    compiled = torch.compile(
        AtOneTimestep(unet, work.timestep).eval(), dynamic=False, options={"freezing": True}
    )

    def forward() -> Tensor:
        with torch.no_grad():
            return compiled(x)

    return forward


def openvino(work: Work, precision: str) -> Forward:
    """Return OpenVINO's CPU plugin with one stream, and threads free to move like all others'."""
    import openvino as ov

    core = ov.Core()
    model: Any = core.read_model(work.onnx)
    if precision == "int8":
        model = _by_nncf(model, work)
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": work.threads,
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    request.set_input_tensor(ov.Tensor(work.array, shared_memory=True))
    output = torch.from_numpy(request.get_output_tensor().data)

    def forward() -> Tensor:
        request.infer()
        return output

    return forward


def _by_nncf(model: Any, work: Work) -> Any:
    import nncf

    nncf.set_log_level(logging.ERROR)
    data = nncf.Dataset([x.numpy() for x in work.calibration])
    with quiet():
        return nncf.quantize(model, data, subset_size=len(work.calibration))


def onnx_runtime(work: Work, precision: str) -> Forward:
    """Return ONNX Runtime's CPU provider; its threads stop spinning after a forward pass."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = work.threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    path = _by_onnx_runtime(work) if precision == "int8" else work.onnx
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: torch.from_numpy(session.run(None, {"x": work.array})[0])


def _by_onnx_runtime(work: Work) -> Path:
    from onnxruntime import quantization as q

    class Reader(q.CalibrationDataReader):
        def __init__(self):
            self.left = iter([{"x": x.numpy()} for x in work.calibration])

        def get_next(self) -> dict | None:
            return next(self.left, None)

    path = work.folder / "int8.onnx"
    with quiet():
        q.quantize_static(
            str(work.onnx),
            str(path),
            Reader(),
            op_types_to_quantize=["Conv"],
            quant_format=q.QuantFormat.QDQ,
            per_channel=True,
            activation_type=q.QuantType.QUInt8,
            weight_type=q.QuantType.QInt8,
        )
    return path


@dataclass(frozen=True)
class EngineKind:
    """How to get a forward pass, in which precisions, and the modules that it must import."""

    make: Callable[[Work, str], Forward]
    precisions: tuple[str, ...]
    modules: tuple[str, ...] = ()
    for_int8: tuple[str, ...] = ()


FLOATS = ("float32", "bfloat16")
OURS, OFFICIAL = "ddfm_fast", "official module"
ENGINES = {
    OURS: EngineKind(ours, FLOATS),
    OFFICIAL: EngineKind(official, FLOATS),
    "torch.compile": EngineKind(inductor, FLOATS),
    "OpenVINO": EngineKind(openvino, (*FLOATS, "int8"), ("openvino", "onnxscript"), ("nncf",)),
    "ONNX Runtime": EngineKind(
        onnx_runtime, ("float32", "int8"), ("onnxruntime", "onnxscript"), ("onnx",)
    ),
}


def missing(name: str, precision: str) -> str | None:
    """Return why an engine cannot run in a precision here, in a sentence, or None."""
    kind = ENGINES[name]
    wanted = kind.modules + (kind.for_int8 if precision == "int8" else ())
    if absent := [module for module in wanted if find_spec(module) is None]:
        what = name if set(absent) & set(kind.modules) else f"{name}, int8"
        return f"{what}: {absent[0]} is not installed; pip install 'ddfm_fast[engines]'"
    if precision == "bfloat16" and not cpu_has(torch.bfloat16):
        return "bfloat16, all engines: this CPU has no products in it"
    return None
