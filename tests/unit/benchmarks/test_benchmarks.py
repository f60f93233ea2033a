"""Rows, targets, turns, the results file and the tables of the benchmarks."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import rows, run, streets, sweep, table
from segdistill.core.errors import UserError
from segdistill.params.read import load_params

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
CONDITIONS = {
    "processor": "a chip",
    "instruction_sets": ["avx2"],
    "threads": 2,
    "versions": {"torch": "2.15.0"},
    "date": "2026-01-01",
}


def a_row(**changes):
    row = {"row": "2", "what": "ours / theirs", "value": 1.02, "target": "at most 1.05", "unit": "ratio"}
    return rows.Row(**(row | {"spread": (1.0, 1.1)} | changes))


@pytest.mark.parametrize(
    ("value", "target", "met"),
    [
        (1.05, "at most 1.05", True),
        (1.06, "at most 1.05", False),
        (4.0, "at least 4", True),
        (3.9, "at least 4", False),
        (3.9, None, None),
    ],
)
def test_a_target_is_a_bound_on_the_value(value, target, met):
    assert a_row(value=value, target=target).met is met


def test_every_kind_runs_first_equally_often():
    order = []
    kinds = {name: (lambda name=name: order.append(name)) for name in "abc"}
    taken_s = rows.seconds_in_turn(kinds, rounds=3, warmup=0)
    assert "".join(order) == "abc" + "bca" + "cab"
    assert {name: len(taken) for name, taken in taken_s.items()} == {"a": 3, "b": 3, "c": 3}
    assert all((taken > 0).all() for taken in taken_s.values())


def test_ratio_row_is_a_median_with_its_spread():
    row = rows.ratio_row("1", "a / b", np.array([1.0, 2.0, 3.0, 4.0, 100.0]))
    assert (row.value, row.spread) == (3.0, (1.4, 61.6))


def test_table_marks_a_missed_target_and_says_why():
    line = table.table([a_row(value=1.2, note="the loader is the bottleneck")]).splitlines()[-1]
    assert line == "| 2 | ours / theirs; the loader is the bottleneck | 1.2 | 1 to 1.1 | at most 1.05 (missed) |"
    assert "missed" not in table.table([a_row()])


def test_table_replaces_only_the_text_between_its_marks(tmp_path):
    document = tmp_path / "README.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    results = {"conditions": CONDITIONS, "rows": [a_row()._asdict() | {"part": "steps"}]}
    for _ in range(2):  # a second time changes nothing
        table.write_table(document, results)
        text = document.read_text(encoding="utf-8")
        assert text.startswith(f"before\n{BEGIN}\n| # |")
        assert text.endswith(f"a chip, avx2; 2 cores; torch 2.15.0; 2026-01-01.\n{END}\nafter\n")
        assert "old" not in text


def test_document_without_marks_is_refused_and_unchanged(tmp_path):
    document = tmp_path / "README.md"
    document.write_text("nothing here\n", encoding="utf-8")
    with pytest.raises(UserError, match="README.md: needs one"):
        table.put_between(document, "benchmarks", "text")
    assert document.read_text(encoding="utf-8") == "nothing here\n"


def test_parts_survive_the_results_file():
    parts = {part: {"conditions": {"of": part}, "rows": [a_row(row=part)._asdict()]} for part in run.PARTS[::-1]}
    gathered = run.gathered(parts)
    assert [row["part"] for row in gathered["rows"]] == list(run.PARTS)
    assert run.parts_of(gathered) == parts


@pytest.mark.parametrize("cached_step_s", [0.95, 1.0, 1.04])
def test_a_sweep_with_a_teacher_never_costs_less_than_one_without(cached_step_s):
    rounds = np.ones(3)
    costs = sweep.Costs(0.2 * rounds, rounds, cached_step_s * rounds, start_s=2.0)
    ratios = [costs.sweep_over_vanilla(1000, steps).item(0) for steps in (500, 30_000, 10**7)]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[-1] == pytest.approx(max(1.0, cached_step_s), abs=1e-4) and ratios[-1] > 1
    steps = costs.median().steps_for(1.1, 1000)
    assert costs.sweep_over_vanilla(1000, steps) == pytest.approx(1.1)


def test_params_of_the_parity_study_are_complete():
    assert load_params(BENCHMARKS / "parity.yaml").data.source == "cityscapes"


def test_every_part_exists():
    assert [part for part in run.PARTS if not (BENCHMARKS / f"{part}.py").is_file()] == []


def test_png_frames_are_no_larger_than_those_of_a_camera(tmp_path):
    photographs = streets.Streets(tmp_path, (256, 512), 1)
    # Cityscapes' files take 1.07 bytes a pixel, photograph and label; small frames have more borders per pixel.
    assert photographs.png_bytes_per_frame / (256 * 512) < 1.4
