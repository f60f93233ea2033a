"""What a search varies: keys of a run, each with an interval or a list of values, as the command line gives them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from segdistill.core.errors import UserError
from segdistill.params.archs import nearest
from segdistill.params.model import FinetuneParams, Params, RunParams
from segdistill.params.read import checked

SYNTAX = "KEY=LOW:HIGH, KEY=LOW:HIGH:log or KEY=VALUE,VALUE,..."
FINETUNE = "finetune."  # before the keys of that section of a run
# Keys whose value cannot change the score, or only by chance.
NOT_SEARCHED = {
    "seed": "the best of several seeds is luck; list them under seeds in params.yaml",
    **dict.fromkeys(
        ("evaluate_every_steps", "log_every_steps", "checkpoint_every_steps"), "it does not change a student"
    ),
    "finetune": "write finetune.KEY",
    "export": "the score is that of the weights, before the export",
}


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, both included; `log` draws them evenly by their logarithm."""

    low: float
    high: float
    log: bool = False

    def __str__(self) -> str:
        return f"{self.low}:{self.high}{':log' * self.log}"

    @property
    def probes(self) -> tuple[float, ...]:
        """Return the values with which all are allowed or not."""
        return self.low, self.high


@dataclass(frozen=True)
class Choice:
    """One of `values`."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        return ",".join(value if isinstance(value, str) else json.dumps(value) for value in self.values)

    @property
    def probes(self) -> tuple[Any, ...]:
        """Return the values with which all are allowed or not."""
        return self.values


Space = dict[str, Interval | Choice]  # by key of a run, those of finetune with FINETUNE before them


def parse_space(arguments: Sequence[str]) -> Space:
    """Return what the arguments KEY=VALUES of the command line say.

    Raises:
        UserError: an argument is not in this form, names no key of a run, or leaves nothing to search.
    """
    space: Space = {}
    for argument in arguments:
        key, equals, values = (part.strip() for part in argument.partition("="))
        if not (key and equals and values):
            raise UserError(f"{argument!r}: write {SYNTAX}")
        if key in space:
            raise UserError(f"{argument!r}: {key} is given twice")
        types = _types_of(key)
        space[key] = _interval(argument, types, values) if ":" in values else _choice(argument, values)
    if all(len(set(map(str, one.probes))) == 1 for one in space.values()):
        raise UserError(f"nothing to search; give at least one key more than one value: {SYNTAX}")
    return space


def _types_of(key: str) -> set[type]:
    """Return the types of number that a key of a run takes.

    Raises:
        UserError: there is no such key, or no use in searching it.
    """
    section: Any = FinetuneParams if key.startswith(FINETUNE) else RunParams
    name = key.removeprefix(FINETUNE)
    if name in NOT_SEARCHED:
        raise UserError(f"{key}: cannot be searched: {NOT_SEARCHED[name]}")
    if name not in section.model_fields:
        allowed = sorted(section.model_fields.keys() - NOT_SEARCHED.keys())
        others = ", finetune.KEY" * (section is RunParams)
        raise UserError(f"{key}: unknown key; allowed: {', '.join(allowed)}{others}{nearest(name, allowed)}")

    def parts(annotation: Any) -> Iterator[Any]:
        yield annotation
        for part in get_args(annotation):
            yield from parts(part)

    return {int, float} & {part for part in parts(section.model_fields[name].annotation) if isinstance(part, type)}


def _interval(argument: str, types: set[type], values: str) -> Interval:
    low, _, rest = values.partition(":")
    high, _, scale = rest.partition(":")
    if scale not in ("", "log"):
        raise UserError(f"{argument!r}: found {scale!r} behind the interval; write LOW:HIGH or LOW:HIGH:log")
    if not types:
        raise UserError(f"{argument!r}: this key takes no numbers of an interval; write VALUE,VALUE,...")
    ends = [_value(end) for end in (low, high)]
    for end in ends:
        if isinstance(end, bool) or not isinstance(end, int | float) or not math.isfinite(end):
            raise UserError(f"{argument!r}: found {end!r} as an end of the interval; allowed are numbers")
        if float not in types and not isinstance(end, int):
            raise UserError(f"{argument!r}: found {end!r}; this key takes whole numbers")
    first, last = ends if float not in types else map(float, ends)
    if not first < last:
        raise UserError(f"{argument!r}: an empty interval; LOW is below HIGH")
    if scale and first <= 0:
        raise UserError(f"{argument!r}: found {first} with log; LOW is above 0 then")
    return Interval(first, last, bool(scale))


def _choice(argument: str, values: str) -> Choice:
    found = [part.strip() for part in values.split(",")]
    if not all(found):
        raise UserError(f"{argument!r}: a value is missing; write KEY=VALUE,VALUE,...")
    if len(set(found)) < len(found):
        raise UserError(f"{argument!r}: each value once")
    return Choice(tuple(map(_value, found)))


def _value(text: str) -> Any:
    """Return a number, true, false or null as such, anything else as text."""
    try:
        return json.loads(text, parse_constant=str)
    except ValueError:
        pass
    try:
        return float(text)  # JSON has no .5 and no 1.
    except ValueError:
        return text


def entry_with(base: dict, values: dict[str, Any]) -> dict:
    """Return the entry of a run that is `base` with other `values`; alpha and both weights replace each other."""
    weights = {"label_weight", "distill_weight"}
    replaced = weights if "alpha" in values else {"alpha"} if weights & values.keys() else set()
    entry = {key: value for key, value in base.items() if key not in replaced}
    entry |= {key: value for key, value in values.items() if not key.startswith(FINETUNE)}
    further = {key.removeprefix(FINETUNE): value for key, value in values.items() if key.startswith(FINETUNE)}
    return entry | ({"finetune": entry_with(base.get("finetune") or {}, further)} if further else {})


def trial_entry(raw: dict, base: str, name: str, values: dict[str, Any]) -> tuple[dict, Params]:
    """Return the entry of the run `name`, `base` with other values, and the params of `raw` with it.

    Where params never evaluate on the holdout, the entry has it done once, after the last step: that is the score.

    Raises:
        UserError: the run has values that are not allowed.
    """
    entry = entry_with(raw["runs"][base], values)
    source = f"a trial with {', '.join(f'{key} {value}' for key, value in values.items())}"

    def params() -> Params:
        return checked(raw | {"runs": raw["runs"] | {name: entry}}, source)

    settings = params().distill_settings(name)
    if not settings.evaluate_every_steps:
        entry |= {"evaluate_every_steps": settings.steps}
    return entry, params()


def check_space(raw: dict, base: str, name: str, space: Space) -> None:
    """Raise a UserError for the first value of `space` that a run `name` made of `base` may not have."""
    first = {key: one.probes[0] for key, one in space.items()}
    for key, one in space.items():
        for value in one.probes:
            trial_entry(raw, base, name, first | {key: value})
