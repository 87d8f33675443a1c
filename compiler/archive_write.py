"""What a file says of a compiled model: JSON, and tensors by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..passes.derive_weights import HOME
from ..runtime.derived import DerivedWeight
from ..runtime.errors import UnsupportedError
from ..runtime.noise import NoiseKey
from ..runtime.tile_parts import flat_parts
from .graph_json import graph_to_json
from .holder import modules_of
from .model import CompiledModel
from .signature import NumberLeaf, Signature, TensorLeaf
from .tree_json import parameters_to_json, tree_to_json

FORMAT = 2


def describe(model: CompiledModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Manifest and tensors of ``model``."""
    root, ctx = model._root, model._ctx
    if any(p.is_meta for p in root.parameters()):
        raise UnsupportedError("a model on the meta device has no weights to save")
    tensors: dict[str, Tensor] = {}
    table: list[dict[str, Any]] = []
    seen: dict[int, dict[str, Any]] = {}
    modules = list(root.named_modules(remove_duplicate=False))
    first: dict[nn.Module, str] = {}
    for name, module in modules:
        first.setdefault(module, name)
    for prefix, module in modules:
        for kind, entries in (("parameter", module._parameters), ("buffer", module._buffers)):
            for name, value in entries.items():
                if value is None:
                    continue
                path = f"{prefix}.{name}" if prefix else name
                if id(value) in seen:
                    seen[id(value)]["names"].append(path)
                    continue
                entry = {
                    "names": [path],
                    "kind": kind,
                    "persistent": name not in module._non_persistent_buffers_set,
                    "requires_grad": value.requires_grad,
                }
                seen[id(value)] = entry
                table.append(entry)
                # A clone: safetensors takes no two tensors in one memory.
                tensors[path] = value.detach().to("cpu", copy=True).contiguous()
    arrays = {}
    for name, array in ctx.arrays.items():
        arrays[name] = {
            "spec": array.spec.to_text(),
            "times_programmed": array.times_programmed,
            "calls": array.calls,
            "auto_sync": array.auto_sync,
            "groups": array.groups,
        }
        if array.chip is not None:
            arrays[name]["chip"] = _key_to_json(array.chip)
    shapes = {mapping.array: mapping.weight_shape for mapping in model.tiles}
    for name, held in model._contents().items():
        shape = arrays[name]["shape"] = shapes[name]
        parts = flat_parts(held, torch.Size(shape), ctx.arrays[name].spec)
        for part, value in parts.items():
            tensors[f"{HOME}.tiles.{name}.{part}"] = value.cpu().contiguous()
        arrays[name]["noise_key"] = _key_to_json(held.key)
        arrays[name]["seconds"] = held.seconds
        if held.slices is not None:
            arrays[name]["significances"] = list(held.significances)
    derived = {
        name: {"graph": graph_to_json(module.expression.graph), "keeps": module.keeps}
        for name, module in root.get_submodule(f"{HOME}.derived").named_children()
        if isinstance(module, DerivedWeight)
    }
    manifest = {
        "format": FORMAT,
        "target": model.target.to_dict(),
        "seed": model.seed,
        "weight_access": model.weight_access,
        "modules": [name for name, _ in modules],
        "shared": {name: first[module] for name, module in modules if first[module] != name},
        "training": [module.training for module in modules_of(root)],
        "tensors": table,
        "arrays": arrays,
        "derived": derived,
        "programs": [
            {
                "mode": list(mode),
                "graph": graph_to_json(program.graph),
                "signature": _signature_to_json(program.signature),
            }
            for mode, program in model._programs.items()
        ],
    }
    return manifest, tensors


def _key_to_json(key: NoiseKey) -> list[int | str]:
    return [key.seed, key.stream, key.counter]


def _signature_to_json(signature: Signature) -> dict[str, Any]:
    leaves: list[dict[str, Any]] = []
    for leaf, name in zip(signature.leaves, signature.names, strict=True):
        if isinstance(leaf, TensorLeaf):
            dtype = str(leaf.dtype).removeprefix("torch.")
            leaves.append({"name": name, "shape": list(leaf.shape), "dtype": dtype})
        elif isinstance(leaf, NumberLeaf):
            leaves.append({"name": name, "number": True})
        elif leaf.value is None or isinstance(leaf.value, bool | int | float | str):
            leaves.append({"name": name, "value": leaf.value})
        else:
            raise UnsupportedError(f"input {name!r} of type {type(leaf.value).__name__} has no "
                                   "form in a file")  # fmt: skip
    return {
        "in": tree_to_json(signature.in_spec),
        "out": tree_to_json(signature.out_spec),
        "leaves": leaves,
        "parameters": parameters_to_json(signature.parameters),
    }
