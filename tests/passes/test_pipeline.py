from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn

from analogc import DEFAULT_PASSES, targets
from analogc.errors import InputError, VerifyError
from analogc.passes import pipeline
from analogc.passes.base import Pass, PassContext, PassResult
from analogc.passes.map_tiles import MapTiles
from analogc.passes.pipeline import PASSES, parse, resolve, run, to_text
from analogc.passes.verify import Verify

if TYPE_CHECKING:
    from tests.passes.conftest import Lower


@dataclass(frozen=True, slots=True)
class Options(Pass):
    """One option of every kind."""

    name: ClassVar[str] = "options"
    mode: Literal["a", "b"] = "a"
    flag: bool = False
    count: int = 3
    share: float = 0.5
    label: str = "x"

    def __call__(self, module: fx.GraphModule, ctx: PassContext) -> PassResult:
        return PassResult(module, False)


@pytest.fixture
def with_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PASSES, "options", Options)


def test_default_order() -> None:
    assert to_text(DEFAULT_PASSES) == (
        "inline-regions,apply-lowerings,lower-attention,lower-grouped-products,"
        "lower-indexed-products,lower-products,lower-bilinear,lower-recurrent,canonicalize,"
        "lower-complex,fold-batch-norm,lower-transposed-conv,select-analog,"
        "derive-weights,map-tiles,rewrite-analog,verify"
    )


def test_every_pass_is_known_by_its_name() -> None:
    assert [PASSES[step.name] for step in DEFAULT_PASSES] == [type(step) for step in DEFAULT_PASSES]
    assert len({step.name for step in DEFAULT_PASSES}) == len(DEFAULT_PASSES)


@pytest.mark.parametrize("name", PASSES)
def test_every_pass_prints_parses_and_equals_itself(name: str) -> None:
    step = PASSES[name]()

    assert parse(str(step)) == (step,)
    assert str(step) == name
    assert hash(step) == hash(PASSES[name]())
    assert step.__doc__


def test_default_passes_survive_the_text_form() -> None:
    assert parse(to_text(DEFAULT_PASSES)) == DEFAULT_PASSES


@pytest.mark.parametrize("split", ["balanced", "full"])
def test_options_survive_the_text_form(split: Any) -> None:
    passes = (MapTiles(split), Verify())

    assert parse(to_text(passes)) == passes


@given(
    st.builds(
        Options,
        mode=st.sampled_from(["a", "b"]),
        flag=st.booleans(),
        count=st.integers(),
        share=st.floats(allow_nan=False),
        label=st.text("abz_-.9", min_size=1),
    )
)
def test_options_of_every_kind_survive_the_text_form(step: Options) -> None:
    PASSES["options"] = Options
    try:
        assert parse(f"{step},verify") == (step, Verify())
    finally:
        del PASSES["options"]


def test_spaces_do_not_matter() -> None:
    assert parse(" map-tiles{ split=full } ,  verify ") == (MapTiles("full"), Verify())


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        ("map-tils", "no pass named 'map-tils'", "map-tiles"),
        ("verify,,verify", "not a pass: ''", "name{option=value"),
        ("", "not a pass: ''", "name"),
        ("map-tiles{split=full", "not a pass", "name"),
        ("map-tiles(split=full)", "not a pass", "name"),
        ("map-tiles{split}", "has no option 'split'", "split"),
        ("map-tiles{rows=3}", "has no option 'rows=3'", "split"),
        ("verify{x=1}", "pass verify has no option 'x=1'", "it has none"),
        ("map-tiles{split=some}", "split must be one of balanced, full, got 'some'", None),
        ("map-tiles{name=x}", "has no option 'name=x'", "split"),
    ],
)
def test_what_is_wrong_with_a_text_is_named(text: str, message: str, fix: str | None) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse(text)

    if fix is not None:
        assert fix in str(caught.value.fix)


@pytest.mark.parametrize(
    "option", ["flag=yes", "flag=1", "count=3.5", "count=many", "share=half", "mode=c"]
)
def test_values_of_the_wrong_kind_are_refused(option: str, with_options: None) -> None:
    with pytest.raises(InputError, match=f"pass options: {option.partition('=')[0]}"):
        parse(f"options{{{option}}}")


def test_resolve_takes_passes_text_or_nothing() -> None:
    assert resolve(None) is DEFAULT_PASSES
    assert resolve("verify") == (Verify(),)
    assert resolve([MapTiles(), Verify()]) == (MapTiles(), Verify())


@pytest.mark.parametrize("passes", [["verify"], [Verify], [None]])
def test_resolve_refuses_what_is_no_pass(passes: Any) -> None:
    with pytest.raises(InputError, match="Pass objects or be a text"):
        resolve(passes)


# -- running --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Note(Pass):
    """Says when its three parts run."""

    name: ClassVar[str] = "note"
    log: list[str]
    breaks: bool = False

    def requires(self, module: fx.GraphModule) -> None:
        self.log.append("requires")

    def ensures(self, module: fx.GraphModule) -> None:
        self.log.append("ensures")

    def __call__(self, module: fx.GraphModule, ctx: PassContext) -> PassResult:
        self.log.append("call")
        if self.breaks:
            del next(n for n in module.graph.nodes if n.op == "call_function").meta["val"]
        return PassResult(module, self.breaks)


def test_run_checks_before_and_after_and_calls_back(lower: Lower) -> None:
    lowered, log = lower(nn.Linear(4, 5), torch.randn(3, 4)), []
    seen: list[tuple[str, bool]] = []

    def after(step: Pass, module: fx.GraphModule, modified: bool) -> None:
        log.append("after")
        seen.append((step.name, modified))

    result = run([Note(log), Verify()], lowered.module, lowered.ctx, after)

    assert log == ["requires", "call", "ensures", "after", "after"]
    assert seen == [("note", False), ("verify", False)]
    assert result is lowered.module


@pytest.mark.parametrize("check", [False, True])
def test_check_verifies_after_every_pass(check: bool, lower: Lower) -> None:
    lowered = lower(nn.Linear(4, 5), torch.randn(3, 4))
    passes = [Note([], breaks=True)]

    if check:
        with pytest.raises(VerifyError, match="has no fake tensor"):
            run(passes, lowered.module, lowered.ctx, check=True)
    else:
        run(passes, lowered.module, lowered.ctx)


def test_run_reports_honestly_what_changed(lower: Lower) -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding="same"), nn.BatchNorm2d(4)).eval()
    lowered = lower(model, torch.randn(2, 2, 5, 5), target=targets.generic_8bit())
    changed: dict[str, bool] = {}
    texts = [lowered.ir]

    def after(step: Pass, module: fx.GraphModule, modified: bool) -> None:
        texts.append(lowered.ir)
        plain = [text.partition(" {")[0] for text in texts[-2:]]
        changed[step.name] = modified
        # Annotations are no change; anything else is.
        assert modified == (
            len(set(plain)) == 2 and step.name not in ("select-analog", "map-tiles")
        )

    pipeline.run(DEFAULT_PASSES, lowered.module, lowered.ctx, after, check=True)

    assert [name for name, modified in changed.items() if modified] == [
        "canonicalize", "fold-batch-norm", "derive-weights", "rewrite-analog",
    ]  # fmt: skip


def test_a_pass_that_does_nothing_says_so(lower: Lower) -> None:
    lowered = lower(nn.Linear(4, 5), torch.randn(3, 4))

    @dataclass(frozen=True, slots=True)
    class Empty(Pass):
        name: ClassVar[str] = "empty"

    with pytest.raises(AssertionError, match="pass empty does nothing"):
        run([Empty()], lowered.module, lowered.ctx)
