"""All the ways of writing a weight that the tests know, as functions of a model.

A model here has layers by index, ``model[0]`` being the one that is written.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Write = Callable[[Any], None]
ROUTES: dict[str, Write] = {}
"""How to write the weight of the first layer, by name."""


def route(write: Write) -> Write:
    ROUTES[write.__name__] = write
    return write


def weight(model: Any) -> nn.Parameter:
    found = model[0].weight
    assert isinstance(found, nn.Parameter)
    return found


def under_no_grad(write: Callable[[Any], Any]) -> Write:
    def apply(model: Any) -> None:
        with torch.no_grad():
            write(weight(model))

    return apply


IN_PLACE: dict[str, Callable[[Any], Any]] = {
    "add_": lambda w: w.add_(0.5),
    "mul_": lambda w: w.mul_(-1.5),
    "neg_": lambda w: w.neg_(),
    "copy_": lambda w: w.copy_(torch.randn_like(w)),
    "fill_": lambda w: w.fill_(0.25),
    "zero_": lambda w: w.zero_(),
    "clamp_": lambda w: w.clamp_(-0.01, 0.01),
    "normal_": lambda w: w.normal_(),
    "index_copy_": lambda w: w.index_copy_(0, torch.tensor([1]), torch.ones(1, w.shape[1])),
    "masked_fill_": lambda w: w.masked_fill_(w > 0, 0.1),
    "scatter_": lambda w: w.scatter_(0, torch.zeros(1, 1, dtype=torch.long), 3.0),
    "setitem_element": lambda w: w.__setitem__((0, 0), 4.0),
    "setitem_row": lambda w: w.__setitem__(2, torch.ones(w.shape[1])),
    "setitem_mask": lambda w: w.__setitem__(w < 0, 0.0),
    "view": lambda w: w.view(-1)[3].fill_(9.0),
    "transpose": lambda w: w.T[1].mul_(2.0),
    "row_alias": lambda w: w[1].add_(1.0),
    "detach_alias": lambda w: w.detach().add_(1.0),
    "detach_inplace_sub": lambda w: w.detach().sub_(w.detach()),
    "data_add_": lambda w: w.data.add_(1.0),
    "data_setitem": lambda w: w.data.__setitem__((1, 1), 7.0),
    "data_view_fill_": lambda w: w.data.view(-1).fill_(0.5),
    "data_sign_flip": lambda w: w.data.neg_(),
    "data_swap_rows": lambda w: w.data.__setitem__([0, 1], w.data[[1, 0]].clone()),
    "data_assignment": lambda w: setattr(w, "data", w.data + 1.0),
    "one_bit": lambda w: w.data.view(torch.int32).view(-1)[:1].bitwise_xor_(1 << 20),
    "numpy": lambda w: w.detach().numpy().__setitem__((0, 0), 2.0),
    "numpy_inplace": lambda w: np.multiply(w.detach().numpy(), 3, out=w.detach().numpy()),
    "asarray": lambda w: np.asarray(w.detach()).__setitem__(slice(0, 2), 0.5),
    "memoryview": lambda w: memoryview(w.detach().numpy()).__setitem__((1, 0), 6.0),  # type: ignore[call-overload]
    "from_dlpack": lambda w: torch.utils.dlpack.from_dlpack(w.detach()).mul_(2.0),
    "numpy_from_dlpack": lambda w: _writable(np.from_dlpack(w.detach())).fill(0.75),
    "untyped_storage": lambda w: w.untyped_storage().__setitem__(3, 66),
    "storage_copy_": lambda w: w.untyped_storage().copy_(torch.randn_like(w).untyped_storage()),
    "set_": lambda w: w.set_(torch.randn_like(w).untyped_storage(), 0, w.shape, w.stride()),
    "foreach_add_": lambda w: torch._foreach_add_([w], 1.0),
    "foreach_on_data": lambda w: torch._foreach_mul_([w.data], 2.0),
    "out_argument": lambda w: torch.add(w, 1.0, out=w),
    "out_on_data": lambda w: torch.mul(w.data, 2.0, out=w.data),
    "relu_inplace": lambda w: torch.nn.functional.relu(w, inplace=True),
    "init_uniform_": lambda w: nn.init.uniform_(w),
    "init_kaiming_": lambda w: nn.init.kaiming_normal_(w),
    "ctypes": lambda w: _poke(w),
}
for _name, _write in IN_PLACE.items():
    ROUTES[_name] = under_no_grad(_write)


def _writable(array: Any) -> Any:
    if not array.flags.writeable:
        array = np.ctypeslib.as_array((ctypes.c_float * array.size).from_address(array.ctypes.data))
    return array


def _poke(w: Tensor) -> None:
    (ctypes.c_float * 1).from_address(w.data_ptr())[0] = 12.0


def _step(model: Any, optimizer: torch.optim.Optimizer) -> None:
    x = torch.randn(4, model[0].weight.shape[1])

    def loss() -> Any:
        optimizer.zero_grad()
        value = model(x).square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    optimizer.zero_grad()


for _kind in ("SGD", "Adam", "AdamW", "Adagrad"):
    for _how in ("foreach", "fused"):

        def _optimizer(model: Any, kind: str = _kind, how: str = _how) -> None:
            _step(model, getattr(torch.optim, kind)(model.parameters(), lr=0.1, **{how: True}))

        ROUTES[f"{_kind}_{_how}"] = _optimizer


@route
def lbfgs(model: Any) -> None:
    _step(model, torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=2))


@route
def rmsprop(model: Any) -> None:
    _step(model, torch.optim.RMSprop(model.parameters(), lr=0.1))


def _other_state(model: Any) -> dict[str, Tensor]:
    state = model.state_dict().items()
    return {k: torch.rand_like(v) if v.is_floating_point() else v for k, v in state}


@route
def load_state_dict(model: Any) -> None:
    model.load_state_dict(_other_state(model))


@route
def load_state_dict_assign(model: Any) -> None:
    model.load_state_dict(_other_state(model), assign=True)


@route
def state_dict_alias(model: Any) -> None:
    model.state_dict()["0.weight"].mul_(3.0)


@route
def vector_to_parameters(model: Any) -> None:
    size = sum(p.numel() for p in model.parameters())
    nn.utils.vector_to_parameters(torch.randn(size), model.parameters())


@route
def new_parameter(model: Any) -> None:
    model[0].weight = nn.Parameter(torch.randn_like(model[0].weight))


@route
def swap_tensors(model: Any) -> None:
    torch.utils.swap_tensors(model[0].weight, nn.Parameter(torch.randn_like(model[0].weight)))


@route
def clip_then_write(model: Any) -> None:
    parameters = list(model.parameters())
    for p in parameters:
        p.grad = torch.ones_like(p)
    nn.utils.clip_grad_norm_(parameters, 1.0)
    with torch.no_grad():
        for p in parameters:
            p -= p.grad
            p.grad = None


@route
def thread(model: Any) -> None:
    import threading

    worker = threading.Thread(target=lambda: weight(model).data.add_(2.0))
    worker.start()
    worker.join()
