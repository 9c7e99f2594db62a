"""What installed packages offer, as nodes of configurations."""

from importlib.metadata import EntryPoint

import pytest

from invdiff.plug_ins import loaded, node_of


def made(gain: float, name: str = "x", *, half: bool = False, shape: tuple[int, ...] = (1,)) -> None: ...


def test_a_node_has_the_plain_parameters_and_leaves_those_without_a_default_open() -> None:
    node = node_of(made)
    assert node.pop("_target_").endswith("test_plug_ins.made")
    assert node == {"gain": "???", "name": "x", "half": False}


@pytest.mark.parametrize("value", ["no_such_module:thing", "math:no_such_name"])
def test_what_cannot_be_loaded_is_named(value: str) -> None:
    with pytest.raises(ValueError, match=f"operator 'mine' of {value} cannot be loaded: "):
        loaded(EntryPoint("mine", value, "invdiff.operators"), "operator")
    assert loaded(EntryPoint("pi", "math:pi", "invdiff.operators"), "operator") > 3
