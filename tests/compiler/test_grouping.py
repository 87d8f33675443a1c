from __future__ import annotations

import random

import pytest

from analogc.compiler.listing import Line, Listing
from analogc.compiler.picture.explorer_data import PLUMBING
from analogc.compiler.picture.grouping import Grouping, grouped

from .drawn import residual


def line(name: str, module: str, *inputs: str, kind: str = "op") -> Line:
    return Line(name, kind, f"%{name}: f32[1]", "op()", inputs, module, None, None)


def around(found: Grouping, home: int) -> list[int]:
    chain = []
    while home != -1:
        chain.append(home)
        home = found.groups[home].parent
    return chain


def check_convex(lines: list[Line], found: Grouping) -> None:
    """No path leaves a group and comes back."""
    inside = {
        one.name: set(around(found, home)) for one, home in zip(lines, found.home, strict=True)
    }
    left: dict[str, set[int]] = {}
    for one in lines:
        left[one.name] = set()
        for name in one.inputs:
            gone = left[name] | (inside[name] - inside[one.name])
            assert not gone & inside[one.name], f"{one.name} comes back"
            left[one.name] |= gone


@pytest.mark.parametrize("seed", range(20))
def test_no_path_leaves_a_group_and_returns(seed: int) -> None:
    rng = random.Random(seed)
    modules = ["", "a", "a.b", "a.b.c", "a.d", "e", "e.f"]
    lines: list[Line] = []
    for i in range(60):
        earlier = [one.name for one in lines[-8:]]
        inputs = rng.sample(earlier, min(len(earlier), rng.randint(0, 3)))
        lines.append(line(f"n{i}", rng.choice(modules), *inputs))
    check_convex(lines, grouped(lines))


@pytest.mark.parametrize("seed", range(5))
def test_no_group_holds_a_single_box(seed: int) -> None:
    rng = random.Random(seed)
    lines = [
        line(f"n{i}", rng.choice(["", "a.b.c", "a.b.d", "e.f.g.h"]), *([f"n{i - 1}"] if i else []))
        for i in range(30)
    ]
    found = grouped(lines)
    boxes = [list(found.home).count(g) for g in range(len(found.groups))]
    for group in found.groups:
        if group.parent != -1:
            boxes[group.parent] += 1
    assert all(count > 1 for count in boxes)


def test_a_module_called_twice_is_two_groups_if_data_left_it_between() -> None:
    lines = [
        line("a", "m"), line("b", "m", "a"), line("out", "", "b"),
        line("c", "m", "out"), line("d", "m", "c"),
    ]  # fmt: skip
    found = grouped(lines)
    assert [(group.path, group.call) for group in found.groups] == [("m", 1), ("m", 2)]
    assert found.home == (0, 0, -1, 1, 1)


def test_parallel_calls_of_a_module_stay_together() -> None:
    lines = [line("x", ""), line("a", "m", "x"), line("y", "", "x"), line("b", "m", "y", "x")]
    assert grouped(lines).home == (-1, 0, -1, 0)


def test_levels_with_one_member_are_joined_in_the_label() -> None:
    lines = [line("a", "net.layers.0.fc"), line("b", "net.layers.0.fc", "a")]
    (group,) = grouped(lines).groups
    assert (group.label, group.path) == ("net.layers.0.fc", "net.layers.0.fc")


def test_hidden_kinds_make_no_group() -> None:
    lines = [line("w", "m", kind="weight"), line("a", "m", "w")]
    assert grouped(lines).home == (0, 0)
    assert grouped(lines, PLUMBING).home == (-1, -1)


def test_groups_of_a_model_follow_its_modules() -> None:
    listing = Listing.of(residual().graph)
    found = grouped(listing, PLUMBING)
    homes = {
        one.name: found.groups[home].path if home >= 0 else ""
        for one, home in zip(listing, found.home, strict=True)
    }
    assert homes["conv2d"] == homes["relu"] == "0.0"
    assert homes["conv2d_3"] == "0.1" and homes["linear"] == ""
    check_convex(list(listing), found)
