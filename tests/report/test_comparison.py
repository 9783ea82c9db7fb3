"""Paired comparison: the figures against independent ones, every refusal,
and the command run for real.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from repository import ROOT
from scipy import stats
from trainings import train_small

from sat_ray.attacks import AttackSpec
from sat_ray.data.split import Split
from sat_ray.evaluation.intervals import mcnemar_p_value, paired_difference_interval
from sat_ray.evaluation.outcome_files import EVALUATION_KEY
from sat_ray.evaluation.outcomes import clean_correct_ids, robust_image_ids
from sat_ray.evaluation.robustness import calibrate_attacks, evaluate
from sat_ray.integrations.command_line.compare import main, run
from sat_ray.models import Normalized
from sat_ray.report.compare.paired import Comparison, compare, to_json
from sat_ray.report.compare.tables import notes, sentence
from sat_ray.report.compare.verdicts import counted_attacks, judge, letter
from sat_ray.storage.store import Storage
from sat_ray.threat import ThreatModel

PGD_8 = AttackSpec(threat_model=ThreatModel("linf", 40 / 255), steps=8, step_size=12 / 255)


# -- the interval and the test


def test_the_interval_is_that_of_the_published_examples() -> None:
    """Cavo 2012 and Bentur 2009 as worked out by Fagerland, Lydersen & Laake, Statistical Analysis
    of Contingency Tables (2017), chapter 8.
    """
    assert paired_difference_interval(59, 6, 16, 80) == pytest.approx((-0.1186, -0.0046), abs=5e-5)
    assert paired_difference_interval(1, 1, 7, 12) == pytest.approx((-0.507, -0.026), abs=5e-4)


CELLS = st.integers(0, 60)


@given(CELLS, CELLS, CELLS, CELLS)
def test_the_interval_holds_the_difference_and_mirrors_when_models_are_swapped(
    a: int, b: int, c: int, d: int
) -> None:
    if n := a + b + c + d:
        low, high = paired_difference_interval(a, b, c, d)
        assert -1 <= low <= (b - c) / n <= high <= 1
        assert paired_difference_interval(a, c, b, d) == pytest.approx((-high, -low), abs=1e-12)
        assert paired_difference_interval(d, b, c, a) == pytest.approx((low, high), abs=1e-12)


@pytest.mark.parametrize(
    "probabilities",
    [
        (0.4, 0.1, 0.1, 0.4),
        (0.3, 0.2, 0.05, 0.45),
        (0.55, 0.02, 0.08, 0.35),
        (0.1, 0.35, 0.35, 0.2),
        (0.2, 0.15, 0.05, 0.6),
    ],
)
def test_the_interval_covers_the_truth_in_about_95_of_100_samples(
    probabilities: tuple[float, ...],
) -> None:
    """Exactly, not by simulation: the probability of every table
    of 25 images whose interval holds the true difference.
    """
    n, covered, total = 25, 0.0, 0.0
    truth = probabilities[1] - probabilities[2]
    tables = [
        (a, b, c, n - a - b - c)
        for a in range(n + 1)
        for b in range(n + 1 - a)
        for c in range(n + 1 - a - b)
    ]
    for table, weight in zip(tables, stats.multinomial.pmf(tables, n, probabilities), strict=True):
        low, high = paired_difference_interval(*table) if weight > 1e-12 else (1.0, -1.0)
        covered, total = covered + weight * (low <= truth <= high), total + weight
    assert total == pytest.approx(1)
    assert 0.925 < covered < 0.99


def test_negative_counts_and_no_image_are_refused() -> None:
    with pytest.raises(ValueError, match="only_b must be an integer >= 0, got -1"):
        paired_difference_interval(1, 1, -1, 1)
    with pytest.raises(ValueError, match="n must be an integer >= 1, got 0"):
        paired_difference_interval(0, 0, 0, 0)
    with pytest.raises(ValueError, match="confidence must be > 0 and < 1, got 95"):
        paired_difference_interval(1, 1, 1, 1, confidence=95)


# -- comparisons of real outcomes


@pytest.fixture(scope="module")
def models(
    digits: Split, digits_threat_model: ThreatModel, digits_model: Normalized
) -> dict[str, Normalized]:
    """Return three trained models, the second trained for a moment only."""
    return {
        "relu-s0": digits_model,
        "silu-short": train_small(digits, digits_threat_model, activation="silu", epochs=2),
        "silu-s0": train_small(digits, digits_threat_model, activation="silu", epochs=4),
    }


@pytest.fixture(scope="module")
def some(digits: Split) -> Split:
    """Return 120 digits that no model was trained on."""
    return digits.take(slice(1000, 1120))


def outcomes(model: Normalized, split: Split, *attacks: AttackSpec, **settings: Any) -> pa.Table:
    return evaluate(
        model,
        split.images,
        split.labels,
        split.image_ids,
        attacks=attacks or [PGD_8],
        slots=40,
        **settings,
    )


@pytest.fixture(scope="module")
def tables(models: dict[str, Normalized], some: Split) -> dict[str, pa.Table]:
    """Return each model's outcomes."""
    return {name: outcomes(model, some) for name, model in models.items()}


def compared(tables: dict[str, pa.Table], **settings: Any) -> Comparison:
    return compare([judge(table, name=name) for name, table in tables.items()], **settings)


def test_differences_counts_and_p_values_are_those_of_the_sets_of_images(
    tables: dict[str, pa.Table],
) -> None:
    comparison, p_values = compared(tables), []
    first, *others = tables.values()
    for kind, ids_of in (("robust", robust_image_ids), ("clean", clean_correct_ids)):
        for pair, other in zip(comparison.pairs, others, strict=True):
            ours, theirs = ids_of(first), ids_of(other)
            test = getattr(pair, kind)
            assert (test.only_first, test.only_other) == (len(ours - theirs), len(theirs - ours))
            assert test.difference == pytest.approx((len(theirs) - len(ours)) / 120)
            assert test.low <= test.difference <= test.high
            discordant = len(ours ^ theirs)
            expected = stats.binomtest(len(ours - theirs), discordant).pvalue if discordant else 1.0
            assert test.p_value == pytest.approx(expected) and test.holm_p_value >= test.p_value
            p_values.append(test.p_value)
        smaller, larger = sorted(
            (getattr(pair, kind) for pair in comparison.pairs), key=lambda test: test.p_value
        )
        assert smaller.holm_p_value == pytest.approx(min(1, 2 * smaller.p_value))
        assert larger.holm_p_value == pytest.approx(max(smaller.holm_p_value, larger.p_value))
    assert comparison.pairs[0].robust.only_first > 0, "nothing flipped, so nothing was tested"


def test_flips_name_the_image_what_each_predicted_and_where_it_broke(
    tables: dict[str, pa.Table],
) -> None:
    comparison = compared(tables)
    pair, (first, other) = to_json(comparison)["pairs"][0], list(tables.values())[:2]
    lost = {row["image_id"]: row for row in pair["robust_in_first_alone"]}
    assert set(lost) == robust_image_ids(first) - robust_image_ids(other) and lost
    assert {row["image_id"] for row in pair["robust_in_other_alone"]} == robust_image_ids(
        other
    ) - robust_image_ids(first)
    broken = {row["image_id"]: row for row in other.to_pylist()}
    for image_id, row in lost.items():
        assert row["label"] == row["first"]["prediction"] == broken[image_id]["label"]
        assert (row["first"]["first_broken_step"], row["first"]["attack"]) == (-1, "")
        found = {
            name: broken[image_id][f"adversarial_{name}" if name == "prediction" else name]
            for name in row["other"]
        }
        assert row["other"] == found and row["other"]["prediction"] != row["label"]


def test_classes_add_up_to_the_accuracies(tables: dict[str, pa.Table]) -> None:
    comparison = compared(tables)
    assert [row.label for row in comparison.classes] == list(range(10))
    assert sum(row.n for row in comparison.classes) == comparison.n == 120
    for index, table in enumerate(tables.values()):
        assert sum(row.robust[index] for row in comparison.classes) == len(robust_image_ids(table))
    of_three = set(
        pc.filter(
            tables["relu-s0"]["image_id"], pc.equal(tables["relu-s0"]["label"], 3)
        ).to_pylist()
    )
    assert comparison.classes[3].robust[0] == len(of_three & robust_image_ids(tables["relu-s0"]))


def test_models_that_withstand_the_same_images_are_within_noise(
    tables: dict[str, pa.Table],
) -> None:
    comparison = compared({"a": tables["relu-s0"], "b": tables["relu-s0"]})
    (pair,) = comparison.pairs
    assert (
        pair.robust.within_noise
        and pair.robust.p_value == 1
        and pair.robust.low < 0 < pair.robust.high
    )
    assert "within noise, the same images are robust in both" in sentence(pair)


def counted(n: int, robust: Sequence[int]) -> pa.Table:
    """Return outcomes of n images of two classes, all right, robust where the ids are given."""
    ids, holds = np.arange(n), np.isin(np.arange(n), robust)
    columns: dict[str, Any] = {
        "image_id": ids, "label": ids % 2, "clean_prediction": ids % 2,
        "attack": pa.repeat("pgd-8", n), "restart": ids * 0,
        "adversarial_prediction": np.where(holds, ids % 2, 1 - ids % 2),
        "first_broken_step": np.where(holds, -1, 3),
        "distance": np.full(n, 0.1, dtype=np.float32), "robust": holds,
    }  # fmt: skip
    return pa.table(columns)


def test_a_difference_is_within_noise_exactly_where_its_corrected_p_value_is_above_5_percent() -> (
    None
):
    """12 against 2 images: p = 0.013, and 0.052 as the smallest of four."""
    first, other = counted(100, range(50)), counted(100, [*range(12, 50), 60, 61])
    p_value = mcnemar_p_value(12, 2)
    assert p_value == pytest.approx(0.0129, abs=1e-4)
    alone = compared({"a": first, "b": other})
    assert not alone.pairs[0].robust.within_noise
    assert "A is the more robust of these two checkpoints on these images" in sentence(
        alone.pairs[0]
    )
    many = compared({"a": first, "b": other, "c": first, "d": first, "e": first})
    assert many.pairs[0].robust.holm_p_value == pytest.approx(4 * p_value)
    assert (
        many.pairs[0].robust.within_noise
        and "no significant difference after Holm's correction (p = 0.052)"
        in sentence(many.pairs[0])
    )
    assert any(
        "McNemar compares these checkpoints on these images, not two activations" in note
        for note in notes(many)
    )


def test_the_view_that_a_model_is_attacked_through_belongs_to_the_model(
    digits_model: Normalized, some: Split, tables: dict[str, pa.Table]
) -> None:
    views = [
        replace(PGD_8, attacker_activation=view, name="")
        for view in ("relu", "relu_smooth_backward")
    ]
    both = outcomes(
        digits_model, some.take(slice(0, 120)), *views, replace(PGD_8, final_iterate=True, name="")
    )
    comparison = compared({"plain": tables["relu-s0"], "both": both})
    assert counted_attacks(comparison.models[1]) == ["pgd-8"]
    assert comparison.pairs[0].robust.only_other == 0, (
        "an AND over two views withstands no more than one of them"
    )


def test_a_cascade_counts_what_broke_an_image_first_and_needs_no_rows_for_it_afterwards(
    models: dict[str, Normalized], some: Split
) -> None:
    second = replace(PGD_8, steps=12, loss="margin", name="")
    pair, half = {name: models[name] for name in ("relu-s0", "silu-short")}, some.take(slice(0, 40))
    cascades = {
        name: outcomes(model, half, PGD_8, second, cascade=True) for name, model in pair.items()
    }
    whole = {name: outcomes(model, half, PGD_8, second) for name, model in pair.items()}
    assert cascades["relu-s0"].num_rows < whole["relu-s0"].num_rows
    found, expected = to_json(compared(cascades)), to_json(compared(whole))
    assert found == expected


def test_letters_go_on_after_z() -> None:
    assert [letter(index) for index in (0, 25, 26, 51, 52, 701, 702)] == [
        "A",
        "Z",
        "AA",
        "AZ",
        "BA",
        "ZZ",
        "AAA",
    ]


# -- what may not be compared


def recorded(table: pa.Table, spec: AttackSpec = PGD_8, **other: Any) -> pa.Table:
    """Add what the evaluate stage records."""
    evaluation = {
        "attacks": [spec.to_json()],
        "dataset": "d" * 64,
        "seed": 0,
        "environment": {"slots": 40},
        "weights": "w",
    } | other
    return table.replace_schema_metadata({EVALUATION_KEY: json.dumps(evaluation)})


def saved(folder: Path, **tables: pa.Table) -> list[str]:
    """Write outcomes as files and return their paths."""
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    return [str(folder / f"{name}.parquet") for name in tables]


def test_attacks_that_differ_in_the_precision_of_their_gradients_are_compared_when_asked(
    models: dict[str, Normalized],
    some: Split,
    tables: dict[str, pa.Table],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    low = replace(PGD_8, gradient="bf16", name="")
    calibrations = calibrate_attacks(
        models["silu-s0"], some.take(slice(0, 32)), attacks=[low], slots=40
    )
    rounded = recorded(outcomes(models["silu-s0"], some, low, calibrations=calibrations), low)
    paths = saved(tmp_path, exact=recorded(tables["silu-s0"]), rounded=rounded)
    with pytest.raises(
        ValueError,
        match=r"A \(exact\) pgd-8; B \(rounded\) pgd-8-bf16; "
        r"compare outcomes of the same attacks, or use --any-gradient",
    ):
        run(paths)
    run([*paths, "--any-gradient", "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())["pairs"][0]
    flipped = len(found["robust_in_first_alone"]) + len(found["robust_in_other_alone"])
    differing = sum(
        a != b
        for a, b in zip(
            *(sorted_robust(table) for table in (tables["silu-s0"], rounded)), strict=True
        )
    )
    assert (
        found["same_verdicts"]
        == pytest.approx(1 - flipped / 120)
        == pytest.approx(1 - differing / 120)
    )
    assert (
        f"images with the same verdict: {100 * found['same_verdicts']:.2f} % A and B"
        in capsys.readouterr().out
    )


def sorted_robust(table: pa.Table) -> list[bool]:
    """Return whether each image is robust, by its id."""
    return list(table.sort_by("image_id")["robust"].to_pylist())


def relabelled(table: pa.Table) -> pa.Table:
    """Return outcomes in which one image has another label."""
    labels = pc.if_else(pc.equal(table["image_id"], 1119), pc.cast(3, pa.int32()), table["label"])
    return table.set_column(1, "label", labels)


def test_outcomes_of_other_images_labels_attacks_or_threat_models_are_refused(
    tables: dict[str, pa.Table], tmp_path: Path
) -> None:
    a, b = tables["relu-s0"], tables["silu-s0"]
    wider = replace(PGD_8, threat_model=ThreatModel("linf", 44 / 255))
    cases = [
        (
            a,
            b.slice(0, 100),
            r"image sets differ: A \(a\) has 120 images, 20 alone \(image_id 1100 first\); "
            r"B \(b\) has 100 images, 0 alone; compare outcomes of the same images, or use "
            r"--common",
        ),
        (
            a,
            relabelled(b),
            r"labels differ for 1 images: image_id 1119 is 9 in A \(a\) and 3 in B \(b\); "
            r"compare outcomes with the same labels",
        ),
        (
            a,
            b.set_column(4, "attack", pa.repeat("pgd-20", 120)),
            r"attacks differ: A \(a\) pgd-8; B \(b\) pgd-20; compare outcomes of the same",
        ),
        (
            recorded(a),
            recorded(b, wider),
            r"attacks differ: threat_model\.epsilon of pgd-8 is 0\.15\d* in A \(a\) "
            r"and 0\.17\d* in B \(b\)",
        ),
        (
            recorded(a),
            recorded(b, replace(PGD_8, restarts=3)),
            r"attacks differ: restarts of pgd-8 is 1 in A \(a\) and 3 in B \(b\)",
        ),
        (
            recorded(a),
            recorded(b, dataset="e" * 64),
            r"datasets differ: A \(a\) was evaluated on dddddddddddd, B \(b\) on eeeeeeeeeeee",
        ),
        (
            a,
            pa.concat_tables([b, b.slice(4, 2)]),
            r"b\.parquet holds image_id 1004 twice for attack pgd-8, restart 0 "
            r"\(2 rows are doub",
        ),
        (a, b.slice(0, 0), r"b\.parquet: table must have at least 1 outcome, got 0 rows"),
    ]
    for ours, theirs, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            run(saved(tmp_path, a=ours, b=theirs))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{a}"], "OUTCOMES must be at least 2, got 1"),
        ([], "the following arguments are required: OUTCOMES"),
        (["{a}", "{a}"], r"a\.parquet is given twice; give each"),
        (["{a}", "{b}", "--flips", "-1"], "--flips must be an integer >= 0, got -1"),
        (["{a}", "{b}", "--flips", "few"], "argument --flips: invalid int value: 'few'"),
        (["{a}", "{b}", "--comon"], "unrecognized arguments: --comon"),
        (["{a}", "{folder}"], r"holds image_id 1000 twice for attack pgd-8.*name those"),
        (["{a}", "gs://bucket/x.parquet"], "must be a local folder or s3://"),
        (
            ["{a}", ""],
            "OUTCOMES must be Parquet files or folders that hold some, got an empty word",
        ),
        (["{a}", "{b}", "--json", ""], "--json must be the path of a file, got an empty word"),
        (
            ["{a}", "{b}", "--json", "{folder}"],
            "--json must be the path of a file, got the folder ",
        ),
        (
            ["{a}", "{b}", "--json", "{folder}/new/"],
            "--json must be the path of a file, got the folder .*/new/",
        ),
        (["{a}", "{b}", "--json", "/"], "--json must be the path of a file, got the folder /"),
        (
            ["{a}", "{b}", "--json", "{b}"],
            r"--json must be another file than the OUTCOMES, got .*b\.parquet",
        ),
    ],
)
def test_commands_that_cannot_be_run_as_written_are_refused(
    arguments: list[str], message: str, tables: dict[str, pa.Table], tmp_path: Path
) -> None:
    a, b = saved(tmp_path, a=tables["relu-s0"], b=tables["silu-s0"])
    with pytest.raises(ValueError, match=message):
        run([one.format(a=a, b=b, folder=tmp_path) for one in arguments])


def damaged(path: Path) -> None:
    """Change bytes in the middle of a file of which the end says where everything is."""
    data = path.read_bytes()
    path.write_bytes(data[:20] + bytes(byte ^ 0x5A for byte in data[20:400]) + data[400:])


def test_a_file_among_several_that_cannot_be_read_is_named(
    tables: dict[str, pa.Table], tmp_path: Path
) -> None:
    named = [f"{tmp_path}/{name}.parquet" for name in "abcd"]
    key, table = EVALUATION_KEY, tables["silu-s0"]
    saved(
        tmp_path,
        a=recorded(tables["relu-s0"]),
        b=table.replace_schema_metadata({key: "{x"}),
        d=table,
        c=recorded(table),
    )
    damaged(tmp_path / "c.parquet")
    (tmp_path / "zoo.py").write_text("def good(): return 3")
    refused = {
        named[1]: (
            r"b\.parquet: metadata sat_ray\.evaluation is no JSON \(Expecting property name.*; "
            r"give outcomes as"
        ),
        named[2]: r"c\.parquet is damaged \(.*\); give outcomes as",
        f"{tmp_path}/zoo.py": r"zoo\.py is no Parquet file \(.*\); give outcomes as",
    }
    for path, message in refused.items():
        with pytest.raises(ValueError, match=message) as caught:
            run([named[0], path, named[3]])
        assert "\n" not in str(caught.value)
    saved(tmp_path, b=table.replace_schema_metadata({key: "[1]"}))
    with pytest.raises(
        ValueError,
        match=r"b\.parquet: metadata sat_ray\.evaluation must be a JSON object, got a list",
    ):
        run(named[:2])


@pytest.mark.parametrize(
    ("uri", "folder", "name"),
    [
        ("/x.json", "/", "x.json"),
        ("/tmp/x.json", "/tmp", "x.json"),
        ("/", "/", ""),
        ("s3://bucket/x.json", "s3://bucket", "x.json"),
        ("s3://bucket", "s3://bucket", ""),
    ],
)
def test_a_file_is_in_its_folder_wherever_it_lies(uri: str, folder: str, name: str) -> None:
    assert Storage.of_file(uri) == (Storage(folder), name)


def test_common_compares_the_images_that_all_have_and_says_how_many(
    tables: dict[str, pa.Table], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (
        recorded(tables["relu-s0"].slice(0, 100)),
        recorded(tables["silu-s0"].slice(30, 90), dataset="e" * 64),
    )
    run([*saved(tmp_path, a=a, b=b), "--common", "--json", str(tmp_path / "found.json")])
    printed, found = capsys.readouterr().out, json.loads((tmp_path / "found.json").read_text())
    assert (
        "--common: 70 images are common to outcomes of 100, 90" in printed
        and "the evaluations differ in dataset" in printed
    )
    expected = to_json(compared({"a": a.slice(30, 70), "b": b.slice(0, 70)}))
    assert found["n"] == 70 and {key: found[key] for key in expected} == expected
    with pytest.raises(ValueError, match="outcomes must share at least 1 image, got none"):
        run([*saved(tmp_path, a=a.slice(0, 10), b=b), "--common"])


# -- the command


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "pipelines/compare.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_prints_plain_tables_and_writes_everything_as_json(
    tables: dict[str, pa.Table], tmp_path: Path
) -> None:
    relu, short, _ = saved(tmp_path, **{name: recorded(table) for name, table in tables.items()})
    (tmp_path / "parts").mkdir()
    for number in range(3):
        pq.write_table(
            recorded(tables["silu-s0"]).slice(40 * number, 40),
            tmp_path / "parts" / f"{number}.parquet",
        )
    done = command(
        relu,
        short,
        str(tmp_path / "parts"),
        "--flips",
        "2",
        "--json",
        str(tmp_path / "out" / "found.json"),
    )
    assert done.returncode == 0 and done.stderr == "" and "\x1b" not in done.stdout
    found, comparison = json.loads((tmp_path / "out" / "found.json").read_text()), compared(tables)
    assert found["outcomes"] == [relu, short, str(tmp_path / "parts")] and [
        one["name"] for one in found["models"]
    ] == [
        "relu-s0",
        "silu-short",
        "parts",
    ]
    assert (
        found["pairs"] == to_json(comparison)["pairs"]
        and found["classes"] == to_json(comparison)["classes"]
    )
    assert "n = 120 images · L∞, ε = 40/255 · pgd-8, 8 steps of 12/255, 1 restart" in done.stdout
    assert sentence(comparison.pairs[0]) in done.stdout
    lost = found["pairs"][0]["robust_in_first_alone"]
    assert f"robust in A, broken in B: {len(lost)} images, the first 2" in done.stdout
    assert (
        f"│ {lost[1]['image_id']:>8} │" in done.stdout
        and f"│ {lost[2]['image_id']:>8} │" not in done.stdout.partition("robust in B")[0]
    )
    assert "McNemar compares these checkpoints on these images, not two activations" in done.stdout


@pytest.fixture
def answered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs the command in this process; it returns the exit status and
    both outputs.
    """
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))  # the command may change it

    def answer(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["compare.py", *arguments])
        status = main(about="")
        said = capsys.readouterr()
        return status, said.out, said.err

    return answer


def test_the_command_prints_no_escape_that_outcomes_hold(
    tables: dict[str, pa.Table], answered: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    hostile = "\x1b]0;title\x07[red]\u202epgd"
    named = [
        table.set_column(
            table.schema.get_field_index("attack"), "attack", pa.array([hostile] * len(table))
        )
        for table in tables.values()
    ]
    files = saved(tmp_path, **{f"{place}\x1b[31m": one for place, one in enumerate(named)})
    status, out, err = answered(*files)
    assert status == 0, err
    assert r"\x1b]0;title\x07[red]\u202epgd" in out and r"0\x1b[31m" in out
    assert not {"\x1b", "\x07", "\u202e"} & set(out + err)


def test_the_command_refuses_in_one_line_with_exit_status_2(
    tables: dict[str, pa.Table], answered: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    a, b = saved(tmp_path, a=tables["relu-s0"], b=tables["silu-s0"].slice(0, 100))
    status, out, err = answered(a, b)
    assert status == 2 and out == ""
    assert err.startswith("error: image sets differ: A (a) has 120 images")
    assert err.count("\n") == 1
