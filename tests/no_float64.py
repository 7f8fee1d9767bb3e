"""A device that has no float64, as Apple's MPS; run as a program, it compares every stage with the CPU.

The device is a tensor subclass on PyTorch's slot for outside backends, which one process can fill only once.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import ot_lens as otl

NAME = "nodouble"


class DeviceTensor(torch.Tensor):
    """A tensor on the device; its numbers are those of a CPU tensor, of any dtype but float64."""

    cpu_tensor: torch.Tensor

    @staticmethod
    def __new__(cls, cpu_tensor: torch.Tensor) -> "DeviceTensor":
        if cpu_tensor.dtype in (torch.float64, torch.complex128):
            raise TypeError(f"The device {NAME!r} does not support float64.")
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            cpu_tensor.shape,
            strides=cpu_tensor.stride(),
            storage_offset=cpu_tensor.storage_offset(),
            dtype=cpu_tensor.dtype,
            device=f"{NAME}:0",
        )
        made.cpu_tensor = cpu_tensor
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


def lowered(value: Any) -> Any:
    if isinstance(value, DeviceTensor):
        return value.cpu_tensor
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value


def computed(func: Any, args: Any, kwargs: Any) -> Any:
    """The result of an operation on the CPU, back on the device unless it was asked for on the CPU."""
    leaves = tree_leaves((args, kwargs))
    given = {id(t.cpu_tensor): t for t in leaves if isinstance(t, DeviceTensor)}
    elsewhere = [
        t for t in leaves if isinstance(t, torch.Tensor) and not isinstance(t, DeviceTensor) and t.ndim
    ]
    if given and elsewhere and "copy" not in str(func) and "index" not in str(func):
        raise RuntimeError(f"Expected all tensors to be on the same device in {func}.")
    low_args, low_kwargs = tree_map(lowered, (args, kwargs))
    out = func(*low_args, **low_kwargs)
    device = kwargs.get("device")
    if not (given and device is None) and lowered(device) is device:
        return out.clone() if id(out) in given else out
    return tree_map(lambda v: given.get(id(v)) or DeviceTensor(v) if isinstance(v, torch.Tensor) else v, out)


class OnDevice(TorchDispatchMode):
    """Operations that make tensors."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


class PythonValues(TorchFunctionMode):
    """Functions that go from or to Python values, which PyTorch computes below the dispatcher."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = torch.device(kwargs["device"])
            if device.type == NAME and not isinstance(args[0], torch.Tensor):
                return func(*args, **{**kwargs, "device": "cpu"}).to(device)
        if func is torch.Tensor.tolist and isinstance(args[0], DeviceTensor):
            return args[0].cpu_tensor.tolist()
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(args[0], DeviceTensor):
            out = func(*tree_map(lowered, args))
            return None if out is None else DeviceTensor(out)
        return func(*args, **kwargs)


def stages(device: str) -> dict[str, Any]:
    """Numbers of every stage that runs the model or reads what it left on its device."""
    model, whole = otl.load_model("organism", device=device), otl.load_prompts("organism")
    contrast = type(whole.train)
    prompts = dataclasses.replace(
        whole,
        train=contrast(whole.train.harmful[:12], whole.train.harmless[:12]),
        test=contrast(whole.test.harmful[:2], whole.test.harmless[:2]),
    )
    harmful, harmless = prompts.test.harmful, prompts.test.harmless
    activations = otl.capture(model, prompts.train)
    logits, cache = model.run_with_cache("x x")
    options = {"layers": [2], "controls": (), "methods": [{"name": "pca_ot", "k": 2}], "max_new_tokens": 2}
    return {
        "activations": activations.harmful(2),
        "fit on the device": otl.fit_mean_shift(
            cache["resid_post", 1][0], cache["resid_post", 2][0]
        ).bias.cpu(),
        "logits": logits.cpu(),
        "answers": [answer.text for answer in otl.complete(model, harmful, max_new_tokens=3)],
        "losses": otl.answer_loss(model, harmless).nll,
        "single pass": otl.localize(
            model, prompts, measures=["refusal_score", "kl"], tokens="last", **options
        ),
        "hooks": otl.localize(model, prompts, engine="hooks", tokens="all", **options),
    }


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-3)
    if isinstance(a, list):
        return a == b
    numbers = a.select_dtypes("floating").columns
    x, y = (t[numbers].to_numpy(float) for t in (a, b))
    return list(a.columns) == list(b.columns) and np.allclose(x, y, atol=1e-3, equal_nan=True)


if __name__ == "__main__":
    _setup_privateuseone_for_python_backend(NAME)
    with PythonValues(), OnDevice():
        here = stages(NAME)
    there = stages("cpu")
    different = [stage for stage in there if not equal(here[stage], there[stage])]
    raise SystemExit(f"different: {different}" if different else 0)
