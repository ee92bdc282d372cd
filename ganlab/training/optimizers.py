"""TensorFlow's RMSProp, fused kernels for any optimizer, and machine-independent optimizer state."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ganlab.errors import ConfigError
from ganlab.schema import NonNegative, Positive, Unit, checked


class RMSpropTF(Optimizer):
    """TensorFlow 1's RMSProp: ms = alpha ms + (1 - alpha) g^2, from ms = 1 on; w -= lr g / sqrt(ms + eps).

    Source: ``tf.train.RMSPropOptimizer``, its defaults but for ``lr``; without momentum and centering.
    torch's starts at ms = 0, has alpha 0.99, and adds eps to the root: at a gradient of 1e-3 it moves a
    weight by 51 lr in its first 10 steps, this one by 0.01 lr.

    Args:
        lr: the learning rate.
        alpha: decay of the mean square, which TensorFlow calls ``decay``.
        eps: under the root.
    """

    @checked
    def __init__(
        self, params: Iterable[Any], lr: NonNegative = 1e-3, alpha: Unit = 0.9, eps: Positive = 1e-10
    ) -> None:
        super().__init__(params, {"lr": lr, "alpha": alpha, "eps": eps, "capturable": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; what ``closure`` returns, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            gradients = [p.grad for p in parameters]
            for p in parameters:
                if not self.state[p]:
                    self.state[p]["square_avg"] = torch.ones_like(p, memory_format=torch.preserve_format)
            squares = [self.state[p]["square_avg"] for p in parameters]
            torch._foreach_mul_(squares, group["alpha"])
            torch._foreach_addcmul_(squares, gradients, gradients, value=1 - group["alpha"])
            moves = torch._foreach_sqrt(torch._foreach_add(squares, group["eps"]))
            moves = torch._foreach_div(gradients, moves)
            torch._foreach_mul_(moves, group["lr"])  # a tensor on the device where a graph records it
            torch._foreach_sub_(parameters, moves)
        return loss


# On a CPU these take a rate that is a tensor.
RATE_TENSORS = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, RMSpropTF)


def use_fused_kernels(optimizer: Optimizer, device: torch.device) -> Optimizer:
    """``optimizer`` with one fused kernel, or multi-tensor ones, for all its parameters.

    Settings of the config (``fused``, ``foreach``) are kept. The learning rate of an optimizer that can be
    recorded is a tensor; on a GPU its step counts are there too. Each group keeps its initial rate as
    ``initial_lr``.
    """
    has_state = bool(optimizer.state)  # Adagrad creates it early, on a device that fused kernels reject
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", float(group["lr"]))
        if group.get("fused") is None and group.get("foreach") is None:
            if "fused" in group and not has_state and not group.get("amsgrad", False):
                group["fused"] = True
            elif "foreach" in group:
                group["foreach"] = True
        if device.type == "cuda" and "capturable" in group:
            group["lr"] = torch.tensor(group["initial_lr"], device=device)
            group["capturable"] = True
        elif device.type == "cpu" and isinstance(optimizer, RATE_TENSORS) and group.get("foreach") is None:
            group["lr"] = torch.tensor(group["initial_lr"], dtype=torch.float64)
    return optimizer


def require_usable(make: Callable[..., Optimizer], device: torch.device, key: str = "optimizer") -> None:
    """Raise ConfigError for incompatible options, which some optimizers only check when they step."""
    weight = nn.Parameter(torch.zeros(2, device=device))
    weight.grad = torch.zeros_like(weight)
    try:
        use_fused_kernels(make([weight]), device).step()
    except (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        what = f"rejects these options: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        raise ConfigError(key, what, "use the defaults") from error


def is_graph_safe(optimizer: Optimizer) -> bool:
    """Whether a step can be recorded: a rate on the host would be a constant of the record."""
    return all(isinstance(group["lr"], Tensor) for group in optimizer.param_groups)


class OptimizerState:
    """An optimizer's state to save and load, without the settings of how its steps are computed."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        """As torch's, but with the initial learning rate as a plain number."""
        state = self.optimizer.state_dict()
        groups = [{**g, "lr": g["initial_lr"]} for g in state["param_groups"]]
        return {"state": state["state"], "param_groups": [_plain(g) for g in groups]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load moments and step counts; learning rates and other options stay the config's.

        Raises KeyError or ValueError for another optimizer's state, as torch's does.
        """
        built = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        groups = [saved | kept for saved, kept in zip(state["param_groups"], built, strict=True)]
        self.optimizer.load_state_dict(
            state | {"param_groups": groups}
        )  # options decide the device of step counts
        for group, kept in zip(self.optimizer.param_groups, built, strict=True):
            group.update(kept)
        for parameter, slots in self.optimizer.state.items():
            for name, value in slots.items():
                slots[name] = with_strides_of(value, parameter)


def state_after_one_step(optimizer: Optimizer) -> dict[Any, Any]:
    """The state of a copy of ``optimizer`` after a step with zero gradients: names, shapes, dtypes."""
    twin = copy.deepcopy(optimizer)
    for group in twin.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    twin.step()
    state: dict[Any, Any] = OptimizerState(twin).state_dict()["state"]
    return state


def with_strides_of(value: Any, parameter: Tensor) -> Any:
    """``value`` with the parameter's strides if it has its shape: fused kernels ignore strides."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    strides = zip(value.shape, value.stride(), parameter.stride(), strict=True)
    if all(n == 1 or a == b for n, a, b in strides):
        return value
    return torch.empty_like(parameter, memory_format=torch.preserve_format).copy_(value)


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    return {k: float(v) if isinstance(v, Tensor) else v for k, v in group.items()}
