"""Any tree of values that YAML can hold is either params or one message that names each wrong place."""

from __future__ import annotations

import copy
import datetime
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from segdistill.core.errors import UserError
from segdistill.params.model import Params
from segdistill.params.read import load_params

VALID = yaml.safe_load((Path(__file__).parents[2] / "profiles" / "tiny.yaml").read_text(encoding="utf-8"))
SURROGATES = st.characters(categories=["Cs"])

texts = st.text(max_size=8) | st.text(SURROGATES, min_size=1, max_size=2)
known_names = st.sampled_from(
    [*VALID, *VALID["distill"], *VALID["runs"]["light"], "finetune", "export", "", "a.b", "\n"]
)
names = known_names | texts | st.integers(-2, 2) | st.booleans() | st.floats()
numbers = st.integers() | st.floats() | st.sampled_from([0, -1, 1, 2**63, 10**300, 2**4000, -(10**9), 1e308, -0.0])
others = st.sampled_from(
    [None, True, datetime.date(2024, 1, 1), b"\xff", {"a"}, "views", "none", "poly", 8, 16, "é" * 9]
)
trees = st.recursive(
    numbers | texts | others,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


def places_in(value: object, above: tuple = ()) -> list[tuple]:
    """Return the path of everything inside a tree."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in items for place in ((*above, key), *places_in(inner, (*above, key)))]


PLACES = places_in(VALID)
replaced = st.tuples(st.just("replace"), st.sampled_from(PLACES), trees)
removed = st.tuples(st.just("remove"), st.sampled_from(PLACES), st.none())
added = st.tuples(st.just("add"), st.sampled_from(PLACES), st.tuples(names, trees))
renamed = st.tuples(st.just("rename"), st.sampled_from(PLACES), names)
copied = st.tuples(st.just("copy"), st.sampled_from(PLACES), st.sampled_from(PLACES))
nested = st.tuples(st.just("nest"), st.sampled_from(PLACES), st.sampled_from([1, 3, 19, 21, 60]))
changes = st.lists(replaced | removed | added | renamed | copied | nested, min_size=1, max_size=4)


def changed(tree: dict, how: str, place: tuple, given: object) -> None:
    """Change one place, unless an earlier change has removed it."""
    parent, key = found(tree, place[:-1]), place[-1]
    if not isinstance(parent, dict | list) or key not in (parent if isinstance(parent, dict) else range(len(parent))):
        return
    if how == "replace":
        parent[key] = given
    elif how == "remove":
        del parent[key]
    elif how == "copy":
        parent[key] = copy.deepcopy(found(tree, given))
    elif how == "nest":
        for _ in range(given):
            parent[key] = [parent[key]]
    elif isinstance(parent, dict):
        name, value = given if how == "add" else (given, parent.pop(key))
        parent[name] = value


def found(tree: object, place: tuple) -> object:
    for key in place:
        try:
            tree = tree[key]
        except (KeyError, IndexError, TypeError):
            return None
    return tree


def shown(name: object) -> str:
    """Return a name as messages have it: a key in JSON, in quotes where it is not printable."""
    (key,) = json.loads(json.dumps({name: 0}))
    return key if key.isprintable() and key else json.dumps(key)


class Plain(yaml.SafeDumper):
    """Writes no aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("params") / "params.yaml"


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(changes)
def test_any_tree_is_params_or_one_message(file, all_changes):
    tree = copy.deepcopy(VALID)
    for one in all_changes:
        changed(tree, *one)
    file.write_text(yaml.dump(tree, Dumper=Plain, sort_keys=False), encoding="utf-8")
    try:
        params = load_params(file)
    except UserError as error:
        heading, *errors = str(error).splitlines()
        assert heading.startswith(str(file))
        known = tuple(shown(name) for name in (*Params.model_fields, *tree))
        places = (*known, "line ", "... and ")
        assert errors
        assert all(error.removeprefix("  - ").startswith(places) for error in errors), heading
    else:
        for run in params.runs:
            params.distill_settings(run)
            params.finetune_settings(run)
            params.export_params(run)
