"""A compiled model from what a file says of it, none of which is trusted."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, get_args

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from ..passes.base import META, PassContext
from ..passes.derive_weights import HOME
from ..passes.emit import forget_real_tensors
from ..passes.verify import OPS, verify
from ..runtime.derived import DerivedWeight, Keeps
from ..runtime.errors import FormatError
from ..runtime.guard import checked_access
from ..runtime.mapping import TileMapping
from ..runtime.noise import NoiseKey, NoiseSource
from ..runtime.regions import join, kept_modes
from ..runtime.spec import parse
from ..runtime.target import Target
from ..runtime.tile_parts import from_parts
from ..runtime.tiles import Programmed, TileArray
from .build import Program
from .copying import new_uid
from .graph_json import GraphReader, checked_name, checked_path, read_atom
from .holder import Holder, ModeFlag, hold, modules_of
from .model import CompiledModel, Mode
from .signature import ConstantLeaf, Leaf, NumberLeaf, Signature, TensorLeaf
from .tree_json import parameters_from_json, tree_from_json


def rebuild(
    manifest: dict[str, Any],
    tensors: dict[str, Tensor],
    device: torch.device,
    allow_ops: Collection[str],
) -> CompiledModel:
    """The model of a file's ``manifest`` and ``tensors``; each entry is checked."""
    reader = GraphReader(device, allow_ops)
    target = Target.from_dict(manifest["target"])
    root = _tree(manifest, tensors, device)
    uid = new_uid()
    seed = manifest["seed"]
    if seed is not None and not isinstance(seed, int):
        raise FormatError("seed is not a number")
    weight_access = checked_access(manifest["weight_access"])
    ctx = PassContext(target=target, root=root, noise=NoiseSource(seed), uid=uid)
    contents: dict[str, Programmed] = {}
    for name, data in manifest["arrays"].items():
        spec = parse(data["spec"])
        groups, sync = int(data["groups"]), bool(data["auto_sync"])
        chip = None if data.get("chip") is None else _key_from_json(data["chip"])
        array = TileArray(name, f"{uid}/{name}", spec, ctx.noise, sync, groups, chip)
        ctx.arrays[name] = array
        if "shape" in data:
            contents[name] = _content(array, data, tensors, device)
        array.times_programmed, array.calls = int(data["times_programmed"]), int(data["calls"])
    ctx.auto_sync = all(array.auto_sync for array in ctx.arrays.values())
    for name, data in manifest["derived"].items():
        expression = fx.GraphModule(nn.Module(), reader.read(data["graph"]), "WeightExpression")
        keeps = data["keeps"]
        if keeps not in get_args(Keeps):
            raise FormatError(f"derived weight {name!r} keeps {keeps!r}")
        home = root.get_submodule(f"{HOME}.derived")
        home.add_module(checked_path(name), DerivedWeight(expression, keeps))
    programs: dict[Mode, Program] = {}
    for data in manifest["programs"]:
        graph = reader.read(data["graph"], root)
        _restore_values(graph, root, data["graph"], device)
        for node in graph.nodes:
            if node.op == "call_function" and node.target in OPS:
                mapping = node.meta.get(META)
                if not isinstance(mapping, TileMapping) or mapping.array not in ctx.arrays:
                    raise FormatError(f"node %{node.name} has no tile array")
                if parse(node.args[-2]) != ctx.arrays[mapping.array].spec:
                    raise FormatError(f"node %{node.name} has other settings than its tile array")
                _check_ranges(node, mapping)
                node.args = (*node.args[:-1], ctx.arrays[mapping.array].key)
        verify(graph, ctx)
        mode = tuple(bool(flag) for flag in data["mode"])
        signature = _signature_from_json(data["signature"])
        _check_signature(graph, signature)
        info = _PyTreeInfo(list(signature.names), signature.in_spec, signature.out_spec)
        graph.set_codegen(_PyTreeCodeGen(info))
        programs[mode] = Program(graph, signature)
    if tuple(module.training for module in modules_of(root)) not in programs:
        raise FormatError("there is no graph for the mode that the model was saved in")
    return CompiledModel(root, ctx, programs, (), None, None, False, contents, weight_access)


def _check_ranges(node: fx.Node, mapping: TileMapping) -> None:
    spec = parse(str(node.args[-2]))
    has_input = spec.dac is not None and not spec.dynamic
    wanted = (
        (len(spec.blocks),) if has_input else None,
        spec.adc_shape(mapping.weight_shape[0]) if spec.adc is not None else None,
    )
    for right, arg in zip(wanted, node.args[3:5], strict=True):
        shape = tuple(arg.meta["val"].shape) if isinstance(arg, fx.Node) else None
        if shape != right:
            raise FormatError(f"node %{node.name} has converter ranges of shape {shape}")


def _check_signature(graph: fx.Graph, signature: Signature) -> None:
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    outputs = [node.args[0] for node in graph.nodes if node.op == "output"]
    given = (len(inputs), [len(out) if isinstance(out, tuple | list) else None for out in outputs])
    wanted = (signature.in_spec.num_leaves, [signature.out_spec.num_leaves])
    if given != wanted or len(signature.leaves) != len(inputs):
        raise FormatError("inputs or outputs of a graph do not fit its signature")


def _content(
    array: TileArray, data: dict[str, Any], tensors: dict[str, Tensor], device: torch.device
) -> Programmed:
    prefix = f"{HOME}.tiles.{array.name}."
    parts = {
        name.removeprefix(prefix): value.to(device)
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
    size = torch.Size(data["shape"])
    seconds = float(data["seconds"])
    significances = tuple(float(c) for c in data.get("significances", (1.0,)))
    if (
        size[1:].numel() != array.spec.rows[-1]
        or not 0 < array.groups <= max(size[0], 1)
        or size[0] % array.groups
        or not seconds >= 0
        or {part.dtype for part in parts.values()} - {torch.float32, torch.float64}
    ):
        raise FormatError(f"tiles of {array.name!r} do not fit their layer")
    key = _key_from_json(data["noise_key"])
    return from_parts(
        parts, size, array.spec, array.groups, key, seconds, significances, array.chip
    )


def _key_from_json(data: Any) -> NoiseKey:
    seed, stream, counter = data
    if not isinstance(stream, str):
        raise FormatError("not a key of noise")
    return NoiseKey(int(seed), stream, int(counter))


def _tree(manifest: dict[str, Any], tensors: dict[str, Tensor], device: torch.device) -> Holder:
    flag = ModeFlag()
    plain = Holder(flag=flag)
    for name in manifest["modules"]:
        if name and name != HOME and not name.startswith(f"{HOME}."):
            same = manifest.get("shared", {}).get(name)
            _make(plain, checked_path(name), flag, None if same is None else checked_path(same))
    _fill(plain, manifest, tensors, device, own=False)
    root = hold(plain)
    _fill(root, manifest, tensors, device, own=True)
    modules = modules_of(root)
    if len(modules) != len(manifest["training"]):
        raise FormatError("the module tree does not fit the list of modes")
    for module, training in zip(modules, manifest["training"], strict=True):
        module.training = bool(training)
    return root


def _make(root: nn.Module, path: str, flag: ModeFlag, same: str | None) -> None:
    """Put a module at ``path``: a new one, or the one that is at ``same`` already."""
    prefix, _, last = path.rpartition(".")
    parent = root.get_submodule(prefix)
    if last in parent._modules:
        return
    child = Holder(flag=flag) if same is None else root.get_submodule(same)
    if any(module is parent for module in child.modules()):
        raise FormatError(f"module {path!r} would be inside itself")
    parent._modules[last] = child


def _fill(
    root: nn.Module,
    manifest: dict[str, Any],
    tensors: dict[str, Tensor],
    device: torch.device,
    own: bool,
) -> None:
    """Put tensors into the tree: the model's (``own=False``), or the compiler's own buffers."""
    for entry in manifest["tensors"]:
        names = [checked_path(name) for name in entry["names"]]
        if names[0].startswith(f"{HOME}.") != own:
            continue
        value = tensors[names[0]].to(device)
        if entry["kind"] == "parameter":
            value = nn.Parameter(value, requires_grad=bool(entry["requires_grad"]))
        elif own and value.is_floating_point():
            value.requires_grad_(bool(entry["requires_grad"]))  # a learned range
        for name in names:
            prefix, _, last = name.rpartition(".")
            module = root.get_submodule(prefix)
            if isinstance(value, nn.Parameter):
                module._parameters[last] = value
            else:
                module._buffers[last] = value
                if not entry["persistent"]:
                    module._non_persistent_buffers_set.add(last)


def _restore_values(
    graph: fx.Graph, root: nn.Module, nodes: list[dict[str, Any]], device: torch.device
) -> None:
    """Fake tensors for every node: inputs from the file, the rest by propagation."""
    env = ShapeEnv()
    mode = FakeTensorMode(shape_env=env, allow_non_fake_inputs=True)
    symbols: dict[str, Any] = {}
    inputs: list[Tensor | None] = []
    for data in nodes:
        if data["op"] != "placeholder":
            continue
        value = data.get("value")
        if value is None:
            inputs.append(None)
            continue
        shape = [_size(size, symbols, env) for size in value["shape"]]
        with mode:
            inputs.append(
                torch.empty(shape, dtype=read_atom("dtype", value["dtype"]), device=device)
            )
    # Some operators take sizes that are symbols by their Python implementation only.
    with enable_python_dispatcher(), kept_modes():
        _Shapes(fx.GraphModule(root, graph), mode).propagate_dont_convert_inputs(*inputs)
    forget_real_tensors(graph)


class _Shapes(FakeTensorProp):
    """Propagates shapes, with fake tensors in place of the model's own.

    Fake mode really runs an operator such as ``add_(buffer, 1)`` if no operand of it is fake.
    """

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """As it is, but that the branches of a condition have results of one form."""
        return args[1] if target is join else super().call_function(target, args, kwargs)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Fake form of the tensor at ``target``."""
        value = super().get_attr(target, args, kwargs)
        if isinstance(value, Tensor):
            return self._mode.from_tensor(value, static_shapes=True)
        return value


def _size(size: Any, symbols: dict[str, Any], env: ShapeEnv) -> Any:
    if isinstance(size, int) and not isinstance(size, bool) and size >= 0:
        return size
    name, hint = size["symbol"], size["hint"]
    if not isinstance(name, str) or not isinstance(hint, int) or not 0 <= hint < 2**62:
        raise FormatError(f"not a size: {size!r}")
    if name not in symbols:
        from torch._dynamo.source import ConstantSource

        source = ConstantSource(f"s{len(symbols)}")
        symbol = env.create_symbol(
            max(hint, 2), source=source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None
        )
        symbols[name] = env.create_symintnode(symbol, hint=max(hint, 2), source=source)
    return symbols[name]


def _signature_from_json(data: dict[str, Any]) -> Signature:
    leaves: list[Leaf] = []
    names = []
    for leaf in data["leaves"]:
        names.append(checked_name(leaf["name"]))
        if "shape" in leaf:
            shape = tuple(None if size is None else int(size) for size in leaf["shape"])
            leaves.append(TensorLeaf(shape, read_atom("dtype", leaf["dtype"])))
        else:
            leaves.append(NumberLeaf() if "number" in leaf else ConstantLeaf(leaf["value"]))
    inputs = tree_from_json(data["in"])
    # fx writes the names of keyword inputs into code.
    for name in inputs.children()[1].context or ():
        checked_name(name)
    return Signature.make(
        inputs,
        tree_from_json(data["out"]),
        tuple(leaves),
        tuple(names),
        parameters_from_json(data["parameters"]),
    )
