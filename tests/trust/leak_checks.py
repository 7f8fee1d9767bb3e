"""The state of a model and the process: everything that an intervention could leave behind."""

import gc
import hashlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformer_lens.hook_points import HookPoint

from ot_lens.models import backend, evaluating
from ot_lens.models.backends import announced_width
from ot_lens.transport import AffineMap

# The tables of hooks that PyTorch gives every module, and the attributes of a tokenizer that a reader sets.
HOOK_TABLES = tuple(name for name in vars(nn.Module()) if "hooks" in name)
TOKENIZER = (
    *("padding_side", "truncation_side", "chat_template"),
    *("pad_token_id", "eos_token_id", "bos_token_id"),
)
PLAIN = (bool, int, float, str, type(None))


PROMPTS = ["w1 w2 w3 w4", "w5", "w6 w7"]


class OwnError(Exception):
    """An error of the user."""


def only_look(x: torch.Tensor, hook: object) -> None:
    """A hook that only reads."""


def random_map(seed: int = 0, rank: int = 3, d: int = 32) -> AffineMap:
    generator = torch.Generator().manual_seed(seed)
    U, V = (torch.randn(d, rank, generator=generator, dtype=torch.float64) for _ in range(2))
    return AffineMap(U / 4, V / 4, torch.randn(d, generator=generator, dtype=torch.float64))


EDITS = {1: random_map(1), 2: random_map(2)}


def hook_tables(model: nn.Module) -> dict[str, Any]:
    """Every hook of every module: key, identity and order; and TransformerLens's handles of them."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        for table in HOOK_TABLES:
            hooks = getattr(module, table)
            found[f"{name}.{table}"] = [(key, id(value)) for key, value in hooks.items()]
        if isinstance(module, HookPoint):
            for handles in ("fwd_hooks", "bwd_hooks"):
                found[f"{name}.{handles}"] = [
                    (id(one), one.hook.id, one.is_permanent, one.context_level)
                    for one in getattr(module, handles)
                ]
    return found


def attributes(model: nn.Module) -> dict[str, Any]:
    """Every other attribute of every module, including `forward` and `training`, by identity or value."""
    # TransformerLens recomputes its aliases whenever another bridge is created, and keeps the last call's
    # residual stream at some address.
    skipped = {*HOOK_TABLES, "fwd_hooks", "bwd_hooks", "_compiled_call_impl"}
    skipped |= {"_block_alias_cache", "_captured_pre_ln_residual"}
    return {
        f"{name}.{key}": value if isinstance(value, PLAIN) else id(value)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if key not in skipped
    }


def weights(model: nn.Module) -> dict[str, Any]:
    """Bytes, address, gradient and requires_grad of every weight and buffer."""
    found: dict[str, Any] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        grad = None if tensor.grad is None else digest(tensor.grad)
        found[name] = (digest(tensor), tensor.data_ptr(), tensor.requires_grad, grad)
    found["state_dict"] = list(model.state_dict())
    return found


def settings(model: Any) -> dict[str, Any]:
    """Configurations and the tokenizer."""
    served = backend(model)
    found = {"cfg": repr(model.cfg)}
    inner = served.hf_model
    if inner is not None:
        found["config"] = inner.config.to_dict() | {"attention": inner.config._attn_implementation}
        found["generation"] = inner.generation_config.to_dict()
    for name in TOKENIZER:
        found[f"tokenizer.{name}"] = getattr(served.tokenizer, name)
    return found


def process() -> dict[str, Any]:
    """The state of torch and of the random generators in this thread.

    Without Python's own generator: beartype, which checks shapes in tests, draws from it.
    """
    module = torch.nn.modules.module
    return {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "random": (
            digest(torch.get_rng_state()),
            np.random.get_state()[1].tobytes(),  # noqa: NPY002  the global one is what could leak
        ),
        "global hooks": [len(module._global_forward_hooks), len(module._global_forward_pre_hooks)],
        "prompt width": announced_width(),
        "tracing": (sys.gettrace(), sys.getprofile()),
    }


def digest(tensor: torch.Tensor) -> str:
    data = tensor.detach().cpu().contiguous().view(torch.uint8) if tensor.ndim else tensor.detach()[None]
    return hashlib.sha256(data.view(torch.uint8).numpy().tobytes()).hexdigest()


@torch.no_grad()
def logits(model: Any, batch: Any) -> torch.Tensor:
    """Logits in the current mode of the model; not through `evaluating`, which is tested too."""
    return backend(model).logits(batch.tokens, batch.mask)


def bits(model: Any, batch: Any) -> str:
    """The bytes of the logits; with a seed for dropout in training mode."""
    if not any(module.training for module in model.modules()):
        return digest(logits(model, batch))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return digest(logits(model, batch))


def state(model: Any, batch: Any) -> dict[str, Any]:
    """Everything; equal states mean that nothing leaked in between."""
    return {
        **{f"hooks {k}": v for k, v in hook_tables(model).items()},
        **{f"attribute {k}": v for k, v in attributes(model).items()},
        **{f"weight {k}": v for k, v in weights(model).items()},
        **settings(model),
        **process(),
        "logits": bits(model, batch),
    }


def light_look(model: nn.Module) -> Callable[[], dict[str, Any]]:
    """A quick check of what an interrupt could affect, without a forward pass."""
    modules = list(model.modules())
    tables = [(f"{name}.{t}", getattr(m, t)) for name, m in model.named_modules() for t in HOOK_TABLES]
    points = [(f"{m.name}.fwd_hooks", m) for m in modules if isinstance(m, HookPoint)]

    def look() -> dict[str, Any]:
        found: dict[str, Any] = {name: list(table.items()) for name, table in tables if table}
        found |= {name: [id(one) for one in point.fwd_hooks] for name, point in points if point.fwd_hooks}
        found["training"] = [module.training for module in modules]
        found["grad"], found["prompt width"] = torch.is_grad_enabled(), announced_width()
        return found

    return look


def leaked(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names of the entries that differ."""
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


class Interrupter:
    """Raises KeyboardInterrupt at the n-th place where CPython could deliver a signal.

    Signals are handled when a function begins and after every call: the events of `sys.setprofile`. Only
    those inside `files` count.
    """

    def __init__(self, at: int | None, files: tuple[str, ...]) -> None:
        self.at = at
        self.files = files
        self.seen = 0
        self.where = ""

    def __call__(self, frame: Any, event: str, argument: Any) -> None:
        if event == "c_exception" or not frame.f_code.co_filename.endswith(self.files):
            return
        if any(caller.f_code.co_name == "__del__" for caller, _ in traceback.walk_stack(frame)):
            return  # Python drops what a finalizer raises
        entered = argument.__name__ if event in ("c_call", "c_return") else frame.f_code.co_name
        if event in ("return", "c_return") and entered == "__enter__":
            return  # `with` handles no signal between this and the block's first step
        if self.at == self.seen:
            sys.setprofile(None)
            code = frame.f_code
            self.where = f"{event} {Path(code.co_filename).name} {code.co_name}"
            raise KeyboardInterrupt
        self.seen += 1

    def run(self, task: Callable[[], Any]) -> BaseException | None:
        """Run a task; returns the interrupt that escaped, if any.

        Python ignores one at the end of an abandoned generator, which pytest would report.
        """
        dropping, sys.unraisablehook = sys.unraisablehook, lambda _: None
        sys.setprofile(self)
        try:
            task()
        except KeyboardInterrupt as interrupt:
            return interrupt
        finally:
            sys.setprofile(None)
            sys.unraisablehook = dropping
        return None


def interrupted_everywhere(
    task: Callable[[], Any], look: Callable[[], dict[str, Any]], files: tuple[str, ...], every: int = 1
) -> tuple[int, dict[str, list[str]], set[str]]:
    """Run a task once for each place (or every n-th) where it can be interrupted.

    Returns:
        The number of places; by place, what leaked after the interrupt was deleted; and the places after
        which something was left while its traceback existed.
    """
    count = Interrupter(None, files)
    count.run(task)
    before = look()
    lost: dict[str, list[str]] = {}
    held: set[str] = set()
    gc.disable()  # nothing may be repaired by chance
    try:
        for at in range(0, count.seen, every):
            interrupter = Interrupter(at, files)
            interrupt = interrupter.run(task)
            if leaked(before, look()):
                held.add(interrupter.where)
            del interrupt
            found = leaked(before, look())
            if found:
                lost[f"{at}: {interrupter.where}"] = found
                before = look()
    finally:
        gc.enable()
    return count.seen, lost, held


def evaluated(model: Any, batch: Any) -> torch.Tensor:
    served = backend(model)
    with evaluating(served.model):
        return served.logits(batch.tokens, batch.mask)
