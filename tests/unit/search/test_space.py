"""What a search varies, as the command line gives it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from segdistill.core.errors import UserError
from segdistill.search.space import Choice, Interval, check_space, entry_with, parse_space, trial_entry

PROFILE = Path(__file__).resolve().parents[3] / "profiles" / "tiny.yaml"


@pytest.fixture
def raw():
    return yaml.safe_load(PROFILE.read_text())


def test_intervals_and_values_are_read():
    space = parse_space(["alpha=0:1", "lr=1e-4:.1:log", "steps=10:20", "method=kl,channel_kl", "temperature=1, 2.5"])
    assert space == {
        "alpha": Interval(0.0, 1.0),
        "lr": Interval(1e-4, 0.1, log=True),
        "steps": Interval(10, 20),
        "method": Choice(("kl", "channel_kl")),
        "temperature": Choice((1, 2.5)),
    }
    assert isinstance(space["alpha"].low, float)  # else Optuna would draw whole numbers
    assert [str(one) for one in space.values()][:4] == ["0.0:1.0", "0.0001:0.1:log", "10:20", "kl,channel_kl"]


def test_values_are_numbers_truth_or_text():
    (found,) = parse_space(["compile=true,false,null,3,text"]).values()
    assert found.values == (True, False, None, 3, "text")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["alpha"], "'alpha': write KEY=LOW:HIGH, KEY=LOW:HIGH:log or KEY=VALUE,VALUE,..."),
        (["alpha="], "'alpha=': write KEY=LOW:HIGH"),
        (["aplha=0:1"], r"aplha: unknown key; allowed: alpha, .*finetune.KEY \(nearest: alpha\)"),
        (["finetune.method=kl,channel_kl"], "finetune.method: unknown key; allowed: alpha, decay_every_steps,"),
        (["seed=1,2"], "seed: cannot be searched: the best of several seeds is luck"),
        (["finetune=1,2"], "finetune: cannot be searched: write finetune.KEY"),
        (["alpha=0.9:0.1"], "'alpha=0.9:0.1': an empty interval; LOW is below HIGH"),
        (["alpha=0.5:0.5"], "an empty interval"),
        (["alpha=0.1:x"], "found 'x' as an end of the interval; allowed are numbers"),
        (["alpha=0.1:true"], "found True as an end of the interval; allowed are numbers"),
        (["alpha=nan:1"], "found nan as an end of the interval"),
        (["alpha=0.1:0.5:lin"], "found 'lin' behind the interval; write LOW:HIGH or LOW:HIGH:log"),
        (["lr=0:1:log"], "found 0.0 with log; LOW is above 0 then"),
        (["steps=1:2.5"], "found 2.5; this key takes whole numbers"),
        (["method=0:1"], "this key takes no numbers of an interval; write VALUE,VALUE,..."),
        (["temperature=1,,2"], "a value is missing"),
        (["temperature=1,1"], "each value once"),
        (["alpha=0.1:0.5", "alpha=1,2"], "alpha is given twice"),
        (["alpha=0.5", "lr=0.1"], "nothing to search; give at least one key more than one value"),
    ],
)
def test_bad_argument_is_one_message(arguments, message):
    with pytest.raises(UserError, match=message):
        parse_space(arguments)


@pytest.mark.parametrize(
    ("base", "arguments", "message"),
    [
        ("a03-lr01", ["alpha=0.1:1.5"], r"a trial with alpha 1.5 has values that are not allowed.*\n.*s-000.alpha"),
        ("a03-lr01", ["alpha=0:0.9"], "a control has alpha 0 and teacher none"),
        ("vanilla", ["alpha=0.1:0.9"], "found alpha 0.1 with teacher none"),
        ("a03-lr01", ["distill_weight=0.1:2"], "allowed is alpha alone, or both"),
        ("a03-lr01", ["alpha=0.1,0.2", "label_weight=1,2"], "allowed is alpha alone, or both"),
        ("a03-lr01", ["feature_weight=0.1:1"], "features are stored of views"),
        ("a03-lr01", ["student=deeplabv3_mobilenet_lite,nonesuch"], 'found "nonesuch"; allowed: '),
        ("a03-lr01", ["finetune.lr=0:1"], "runs.s-000.finetune.lr: found 0"),
    ],
)
def test_space_that_params_do_not_allow_is_refused_before_any_trial(raw, base, arguments, message):
    with pytest.raises(UserError, match=message):
        check_space(raw, base, "s-000", parse_space(arguments))


def test_trial_is_its_base_with_other_values(raw):
    base = raw["runs"]["a03-lr01"]
    entry, params = trial_entry(raw, "a03-lr01", "s-000", {"lr": 0.02, "finetune.lr": 0.001, "finetune.steps": 4})
    assert entry == base | {"lr": 0.02, "finetune": {"lr": 0.001, "steps": 4}}
    assert params.finetune_settings("s-000").steps == 4
    assert raw["runs"].keys() == {"vanilla", "a03-lr01", "light"}


def test_alpha_and_both_weights_replace_each_other():
    weights = {"label_weight": 1.0, "distill_weight": 0.5}
    assert entry_with({"alpha": 0.3, "lr": 1}, weights) == {"lr": 1} | weights
    assert entry_with(weights | {"lr": 1}, {"alpha": 0.3}) == {"lr": 1, "alpha": 0.3}
    assert entry_with({"alpha": 0.3}, {"lr": 1}) == {"alpha": 0.3, "lr": 1}
    nested = entry_with({"alpha": 0.3, "finetune": {"alpha": 0.1}}, {f"finetune.{key}": 1 for key in weights})
    assert nested == {"alpha": 0.3, "finetune": dict.fromkeys(weights, 1)}


def test_run_that_never_evaluates_does_so_after_its_last_step(raw):
    raw["distill"]["evaluate_every_steps"] = 0
    entry, params = trial_entry(raw, "a03-lr01", "s-000", {"steps": 7})
    assert entry["evaluate_every_steps"] == 7
    assert params.finetune_settings("s-000").evaluate_every_steps == 7
    raw["distill"]["evaluate_every_steps"] = 3
    assert "evaluate_every_steps" not in trial_entry(raw, "a03-lr01", "s-000", {"steps": 7})[0]
