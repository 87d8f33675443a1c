"""Objects that hold tensors, and models that are called in several ways."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import analogc
from analogc.errors import InputError, UnsupportedError


class Layer:
    """Keys and values of one layer; nothing until it is first written."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None


class Cache:
    """Of a class that nobody registered with pytree."""

    def __init__(self, layers: int) -> None:
        self.layers = [Layer() for _ in range(layers)]
        self.tags: dict[Any, Any] = {"kind": "growing", 3: torch.float32}
        self.length = 0

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        at = self.layers[layer]
        if at.keys is not None and at.values is not None:
            keys, values = torch.cat([at.keys, keys], 1), torch.cat([at.values, values], 1)
        at.keys, at.values = keys, values
        if layer == 0:
            self.length += keys.shape[1] if self.length == 0 else 1
        return keys, values


@dataclass
class Output:
    logits: Tensor
    cache: Cache | None = None


class Decoder(nn.Module):
    def __init__(self, layers: int = 2, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(layers))
        self.norm = nn.Dropout(0.5)

    def forward(self, tokens: Tensor, cache: Cache | None = None, **flags: Any) -> Output:
        x = self.embed(tokens)
        cache = Cache(len(self.qkv)) if cache is None else cache
        for i, layer in enumerate(self.qkv):
            q, k, v = layer(x).chunk(3, -1)
            k, v = cache.update(i, k, v)
            x = x + self.norm((q @ k.mT).softmax(-1) @ v)
        logits = x @ self.embed.weight.T
        return Output(logits, cache if flags.get("keep", True) else None)


def generate(model: nn.Module, tokens: Tensor, steps: int = 6) -> tuple[Tensor, Cache]:
    cache, last = Cache(2), tokens
    with torch.no_grad():
        for _ in range(steps):
            out = model(last, cache=cache)
            assert out.cache is cache, "the model returns the cache that it was given"
            last = out.logits[:, -1:].argmax(-1)
            tokens = torch.cat([tokens, last], 1)
    return tokens, cache


TOKENS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 3]])


def assert_caches_equal(a: Cache, b: Cache) -> None:
    assert a.length == b.length
    for x, y in zip(a.layers, b.layers, strict=True):
        assert x.keys is not None and y.keys is not None
        torch.testing.assert_close((x.keys, x.values), (y.keys, y.values))


# -- objects --------------------------------------------------------------------------------------


def test_object_that_the_model_makes_is_an_output() -> None:
    model = Decoder().eval()
    compiled = analogc.compile(model, (TOKENS,), target="ideal", check=True)
    got, want = compiled(TOKENS), model(TOKENS)
    torch.testing.assert_close(got.logits, want.logits)
    assert type(got.cache) is Cache and got.cache.tags == want.cache.tags
    assert_caches_equal(got.cache, want.cache)
    assert got.cache is not compiled(TOKENS).cache


@pytest.mark.parametrize("dynamic", ["auto", "batch"])
def test_object_that_the_model_is_given_is_written_by_calls_but_not_by_compiling(
    dynamic: str,
) -> None:
    model = Decoder().eval()
    with torch.no_grad():
        example = model(TOKENS).cache
    step = TOKENS[:, :1]
    compiled = analogc.compile(
        model, (step,), {"cache": example}, target="ideal", dynamic_shapes=dynamic
    )
    assert example.length == 5
    ours, theirs = copy.deepcopy(example), copy.deepcopy(example)
    layer = ours.layers[0]
    got, want = compiled(step, cache=ours), model(step, cache=theirs)
    assert got.cache is ours and ours.layers[0] is layer
    torch.testing.assert_close(got.logits, want.logits)
    assert_caches_equal(ours, theirs)
    if dynamic == "auto":
        assert ours.length == 6
        torch.testing.assert_close(
            compiled(step, cache=ours).logits, model(step, cache=theirs).logits
        )


def test_object_in_another_state_is_an_input_error() -> None:
    model = Decoder().eval()
    example = model(TOKENS).cache
    compiled = analogc.compile(model, (TOKENS[:, :1],), {"cache": example}, target="ideal")
    with pytest.raises(InputError, match="state of a Cache"):
        compiled(TOKENS[:, :1], cache=Cache(2))
    with pytest.raises(InputError, match="has shape"):
        compiled(TOKENS[:, :1], cache=model(TOKENS[:, :3]).cache)


def test_object_has_no_form_in_a_file(tmp_path: Any) -> None:
    compiled = analogc.compile(Decoder().eval(), (TOKENS,), target="ideal")
    with pytest.raises(UnsupportedError, match="no form in a file"):
        compiled.save(tmp_path / "model")


@pytest.mark.parametrize("dynamic", ["auto", "batch"])
def test_keywords_that_the_forward_does_not_name_may_be_there(dynamic: str) -> None:
    model = Decoder().eval()
    compiled = analogc.compile(
        model, (TOKENS,), {"keep": False}, target="ideal", dynamic_shapes=dynamic
    )
    more = torch.cat([TOKENS, TOKENS])
    got = compiled(more, keep=False)
    assert got.cache is None
    torch.testing.assert_close(got.logits, model(more).logits)
    assert "forward" not in vars(model)


# -- attach ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2])
def test_generation_with_a_growing_cache_is_the_digital_one(rows: int) -> None:
    model = Decoder().eval()
    want, theirs = generate(model, TOKENS[:rows])
    with analogc.attach(model, target="ideal", check=True) as attached:
        got, ours = generate(model, TOKENS[:rows])
    assert torch.equal(got, want)
    assert_caches_equal(ours, theirs)
    assert len(attached.graphs) == 2  # the prompt, and a token with a cache of any length
    assert "forward" not in vars(model)


def test_all_kinds_of_calls_share_arrays_ranges_and_programming() -> None:
    model = Decoder().eval()
    with analogc.attach(model, target="generic-8bit-noisy", seed=0) as attached:
        generate(model, TOKENS)
        assert {w.times_programmed for w in attached.weights.values()} == {1}
        assert list(attached.weights) == ["qkv.0", "qkv.1", "embed"]
        first, second = attached.graphs
        assert {t.array for t in first.tiles} == {t.array for t in second.tiles}
        assert [t.tile_ids for t in first.tiles] == [t.tile_ids for t in second.tiles]
        with torch.no_grad():
            model.get_parameter("qkv.0.weight").mul_(2)
        generate(model, TOKENS)
        assert [w.times_programmed for w in attached.weights.values()] == [2, 1, 1]
        assert len(attached.graphs) == 2


def test_other_sizes_take_the_same_graph_where_the_model_allows_it() -> None:
    model = Decoder().eval()
    with analogc.attach(model, target="ideal") as attached:
        for shape in ((2, 5), (3, 7), (4, 2)):
            tokens = torch.ones(shape, dtype=torch.int64)
            with torch.no_grad():
                model(tokens)
        assert len(attached.graphs) == 1


def test_guards_of_a_graph_are_kept() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x)
            return y if x.shape[0] < 5 else -y

    model = Branches()
    inputs = [torch.randn(n, 4) for n in (3, 8, 4, 9)]
    want = [model(x) for x in inputs]
    with analogc.attach(model, target="ideal") as attached:
        for x, y in zip(inputs, want, strict=True):
            torch.testing.assert_close(model(x), y)
        assert len(attached.graphs) == 2


def test_modes_have_graphs_of_their_own() -> None:
    model = Decoder().eval()
    with analogc.attach(model, target="ideal") as attached, torch.no_grad():
        still = model(TOKENS).logits
        model.train()
        assert not torch.equal(model(TOKENS).logits, still)
        model.eval()
        assert torch.equal(model(TOKENS).logits, still)
        assert len(attached.graphs) == 2


def test_module_that_is_replaced_is_followed() -> None:
    model = Decoder().eval()
    with analogc.attach(model, target="generic-8bit") as attached, torch.no_grad():
        model(TOKENS)
        model.qkv[1] = nn.Linear(8, 24)
        got = model(TOKENS).logits
        (graph,) = attached.graphs
        assert graph.get_parameter("qkv.1.weight") is model.qkv[1].weight
    want = model(TOKENS).logits
    assert (got - want).abs().max() <= 0.2 * want.abs().max()


def test_submodule_may_be_attached_too() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(torch.tanh(self.encoder(x)))
            return y

    model, x = Both(), torch.randn(4, 6)
    whole, part = model(x), model.encoder(x)
    with analogc.attach(model, target="ideal") as a, analogc.attach(model.encoder) as b:
        torch.testing.assert_close(model(x), whole)
        assert len(a.graphs[0].tiles) == 2 and not b.graphs
        assert not torch.equal(model.encoder(x), part)
        assert len(b.graphs) == 1


def test_gradients_flow() -> None:
    model = Decoder().eval()
    with analogc.attach(model):
        model(TOKENS).logits.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("model", [None, Decoder, lambda x: x])
def test_what_is_no_module_is_refused(model: Any) -> None:
    with pytest.raises(InputError, match=r"takes an nn\.Module"):
        analogc.attach(model)


def test_option_that_there_is_not_is_refused_at_once() -> None:
    model = Decoder()
    with pytest.raises(InputError, match="no option tiles"):
        analogc.attach(model, tiles=3)
    assert "forward" not in vars(model)


def test_attached_model_is_not_exported_digitally() -> None:
    model = nn.Linear(4, 4)
    with (
        analogc.attach(model, target="ideal"),
        pytest.raises(UnsupportedError, match="is attached") as info,
    ):
        torch.export.export(model, (torch.randn(2, 4),))
    assert "detach()" in str(info.value.fix)


def test_attaching_twice_or_a_compiled_model_is_refused() -> None:
    model = Decoder().eval()
    with analogc.attach(model), pytest.raises(InputError, match="replaced already"):
        analogc.attach(model)
    compiled = analogc.compile(model, (TOKENS,), target="ideal")
    with pytest.raises(InputError, match="digital model"):
        analogc.attach(compiled)


def test_time_and_programming_reach_the_tiles_of_all_graphs() -> None:
    class Modes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: Tensor, deep: bool) -> Any:
            return self.c(self.a(x)) if deep else self.b(self.a(x))

    torch.manual_seed(0)
    model, x = Modes().eval(), torch.randn(3, 8)
    with analogc.attach(model, target="reram-wan2022", seed=0) as attached, torch.no_grad():
        with pytest.raises(InputError, match="not called"):
            attached.drift_to(1.0)
        with pytest.raises(InputError, match="not called"):
            attached.program()
        fresh = [model(x, deep) for deep in (True, False)]
        assert len(attached.graphs) == 2
        attached.drift_to(86400.0)
        assert not any(map(torch.equal, fresh, [model(x, deep) for deep in (True, False)]))
        attached.drift_to(0.0)
        assert all(map(torch.equal, fresh, [model(x, deep) for deep in (True, False)]))
        attached.program()
        assert {w.times_programmed for w in attached.weights.values()} == {2}
        assert not any(map(torch.equal, fresh, [model(x, deep) for deep in (True, False)]))
        attached.program(seed=0)
        assert {w.times_programmed for w in attached.weights.values()} == {1}
        assert all(map(torch.equal, fresh, [model(x, deep) for deep in (True, False)]))
        result = analogc.evaluate(
            attached.graph_for(x, True), lambda m: float(m(x, True).sum()), times=(0, 3600), seeds=2
        )
        assert len(result.rows) == 4
        with pytest.raises(InputError, match="graph_for"):
            analogc.evaluate(attached, float)  # type: ignore[arg-type]
