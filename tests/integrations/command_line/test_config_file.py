"""A sweep's config as YAML: `--config FILE` gives what was written, and names what is wrong."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from sweeps import pipeline

from sat_ray.integrations.command_line.checks.claims import claim_folder
from sat_ray.integrations.command_line.dry_run import describe
from sat_ray.integrations.command_line.parsing import Command, UsageError
from sat_ray.storage.store import Storage
from sat_ray.sweep.plan.trainings import final_tasks, trial_task
from sat_ray.sweep.recipes import RECIPES
from sat_ray.sweep.tasks import Dataset
from sat_ray.utils.import_string import UnconfirmedCodeError
from sat_ray.utils.serialization import to_json

Read = Callable[..., Command]
MANIFEST = {
    "dataset": "digits",
    "splits": {"train": 800, "val": 98, "test": 899},
    "shape": [1, 8, 8],
    "mean": [0.3],
    "std": [0.3],
    "class_names": [str(digit) for digit in range(10)],
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_file_gives_the_config_that_it_was_written_from(recipe: str, command: Read) -> None:
    Path("a.yaml").write_bytes(RECIPES[recipe]().as_yaml())
    given = command("--config", "a.yaml")
    assert given.config == RECIPES[recipe]()
    assert given.name == recipe, "a name and no hash: nothing was overridden"


def test_a_sweep_is_the_same_from_its_words_and_from_its_file(command: Read) -> None:
    words = ("digits", "--threat-model.epsilon", "0.1", "--search.pairs", "--final.seeds", "3", "4")
    first = command(*words, "--training.weight-decay", "1e-5", "--cost.budget", "0.5")
    claim_folder(first)
    again = command("--config", f"{first.storage.uri}/config.yaml")
    assert again.config == first.config and again.name == first.name
    claim_folder(again)
    data = Dataset(uri="x", hash="0" * 64, manifest=MANIFEST)
    for config in (first.config, again.config):
        points = list(config.search.points())
        tasks = [*final_tasks(config, data, points), trial_task(config, data, points[0])]
        if config is first.config:
            keys = [task.key for task in tasks]
    assert keys == [task.key for task in tasks] and len(keys) == len(set(keys))
    written = yaml.safe_load((Path(first.storage.uri) / "config.yaml").read_text())
    assert written == to_json(first.config)


def test_the_first_line_of_the_file_is_the_command_of_a_sweep_that_was_given_a_name(
    command: Read,
) -> None:
    first = command("digits", "--training.epochs", "5", "--name", "mine")
    claim_folder(first)
    path = f"{first.storage.uri}/config.yaml"
    line = Path(path).read_text().partition("\n")[0]
    assert line == "# Starts this sweep: sat-ray sweep --config FILE --name mine"
    again = command(*line.partition(" sweep ")[2].replace("FILE", path).split())
    assert again.storage.uri == first.storage.uri
    claim_folder(again)  # refuses another sweep
    assert command("--config", f"{first.storage.uri}/config.json").config == first.config


def test_a_folder_of_an_earlier_version_gets_its_file_and_a_new_budget_is_in_it(
    command: Read,
) -> None:
    given = command("digits")
    given.storage.write_json("config.json", to_json(given.config))
    assert "checksum" not in given.storage.read_object("config.json")
    claim_folder(given)
    assert "budget: null" in given.storage.read("config.yaml").decode()
    assert "checksum" in given.storage.read_object("config.json")
    claim_folder(command("digits", "--budget", "2"))
    assert "budget: 2" in given.storage.read("config.yaml").decode()


def test_the_command_line_beats_the_file_and_the_file_beats_the_recipe(command: Read) -> None:
    Path("a.yaml").write_text("recipe: digits_smoke\ntraining:\n  epochs: 4\n  momentum: 0.5\n")
    config = command("--config", "a.yaml", "--training.epochs", "5").config
    recipe = RECIPES["digits_smoke"]()
    assert (config.training.epochs, config.training.momentum) == (5, 0.5)
    assert config.search == recipe.search and config.threat_model == recipe.threat_model
    assert command("--training.epochs", "5", "--config", "a.yaml").config == config
    assert command("digits_smoke", "--training.epochs", "5", "--training.momentum", "0.5").name == (
        command("--config", "a.yaml", "--training.epochs", "5").name
    )


def test_numbers_are_read_as_on_the_command_line(command: Read) -> None:
    Path("a.yaml").write_text(
        "recipe: digits\nthreat_model: {epsilon: 8/255}\ntraining: {weight_decay: 5e-4}\n"
        "final: {seeds: [7]}\nsearch: {pairs: []}\nevaluation: {images: null}\n"
    )
    config = command("--config", "a.yaml").config
    assert config.threat_model.epsilon == 8 / 255 and config.training.weight_decay == 5e-4
    assert config.final.seeds == (7,) and config.search.pairs == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe: digits\ntraining: {epochz: 3}", "training.epochz is no field .*training.epochs"),
        ("recipe: digits\ntrainings: {epochs: 3}", "trainings.epochs is no field .*training.epo"),
        ("recipe: digits\ntraining: 3", "training must hold fields of its own, got 3"),
        (
            "recipe: digits\ntraining: {epochs: three}",
            "training.epochs must be a whole number.*'th",
        ),
        (
            "recipe: digits\ntraining: {epochs: true}",
            "training.epochs must be a whole number .*Tru",
        ),
        (
            "recipe: digits\ntraining: {epochs: 2.5}",
            "training.epochs must be a whole number .* 2.5",
        ),
        ("recipe: digits\nmodel: {zero_gamma: 1}", "model.zero_gamma must be True or False, got 1"),
        ("recipe: digits\nmodel: {name: 7}", "model.name must be a text, got 7"),
        ("recipe: digits\nsearch: {rungs: 3}", "search.rungs must be a list, got 3"),
        ("recipe: digits\nsearch: {rungs: [x]}", "search.rungs must be a list .* whole number"),
        (
            "recipe: digits\nsearch: {method: best}",
            "search.method must be one of grid, asha, optun",
        ),
        ("recipe: digits\ntraining: {momentum: .nan}", "training.momentum must be a number"),
        ("recipe: digits\nevaluation: {lanes: 64}", "evaluation.lanes is now evaluation.slots"),
        ("recipe: digits\nsearch: {seed: 1}", "search.seed is now search.seeds"),
        (
            "recipe: digits\ntraining: {warmup_epochs: 99}",
            "training.warmup_epochs must be a number",
        ),
        ("recipe: digist", "recipe 'digist' is unknown; did you mean digits"),
        ("training: {epochs: 3}", "recipe is missing; name the one"),
        ("recipe: digits\ntraining:", "training must hold fields of its own, got nothing"),
        ("recipe: digits\ntraining: {epochs: 3.0}", "must be a whole number .*, got 3.0"),
        (
            "recipe: digits\nstorage: x",
            "storage is no field .* --storage stand on the command line",
        ),
        ("recipe: ''", "recipe '' is unknown; choose "),
        ("recipe: digits\nsearchh: {}", "searchh is no field of a config"),
        ("recipe: digits\ntraining: {epochs: {}}", "training.epochs must be a whole number.*{}"),
        ("recipe: digits\nfinal:\n\tseeds: [1]", "is no YAML .line 3.*with spaces, not tabs"),
        ("recipe: digits\nfinal: {seeds: [1]}\nfinal: {}", "field final is there twice"),
        ("recipe: digits\nfinal: {seeds: [1], seeds: [2]}", "field final.seeds is there twice"),
        ("recipe: &a digits\nname: *a", "aliases .* are not read"),
        ("recipe: [digits", "is no YAML .line "),
        ("recipe: 2026-99-99", "has a value that cannot be read .month"),
        (f"recipe: {'9' * 5000}", "has a value that cannot be read .Exceeds the limit"),
        ("- digits", "must hold the fields of a config, got "),
        ("", "must hold the fields of a config, got nothing; give a sweep's config.yaml"),
        ("recipe: \x00", "is no YAML"),
        ("recipe: !!python/name:os.system x", "is no YAML .line 1: could not determine a constr"),
    ],
)
def test_what_is_wrong_is_one_line_with_file_and_field(
    text: str, message: str, command: Read
) -> None:
    Path("my.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"^my\.yaml:? .*{message}") as error:
        command("--config", "my.yaml")
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_and_a_second_recipe_are_refused(command: Read) -> None:
    Path("bytes.yaml").write_bytes(b"\xff\xfe\x00")
    os.mkfifo("pipe.yaml")
    for path, message in {
        "no.yaml": "--config no.yaml cannot be read .No such file",
        ".": "--config . cannot be read .it is a folder",
        "pipe.yaml": "--config pipe.yaml cannot be read .it is no regular file",
        "gs://x/a.yaml": "--config must be a local path or begin with s3://, got gs://x/a.yaml",
        "/dev/zero": "--config /dev/zero cannot be read .it is no regular file",
        "bytes.yaml": "bytes.yaml is no UTF-8 text",
    }.items():
        with pytest.raises(ValueError, match=message):
            command("--config", path)
    with pytest.raises(UsageError, match="--config must stand without a RECIPE, got digits"):
        command("digits", "--config", "no.yaml")
    with pytest.raises(UsageError, match="--config needs a value"):
        command("--config")


def test_code_that_a_file_names_is_imported_where_the_command_names_it_too(command: Read) -> None:
    Path("marked.py").write_text(
        "open('imported', 'w').close()\nimport torch\n"
        "def soft(x, alpha=1.0):\n    return torch.nn.functional.softplus(x)\n"
    )
    Path("a.yaml").write_text("recipe: digits\nsearch: {activations: [relu, 'marked:soft']}\n")
    with pytest.raises(UnconfirmedCodeError, match=r"a.yaml names code.*--allow-code marked:soft"):
        command("--config", "a.yaml")
    assert not Path("imported").exists()
    config = command("--config", "a.yaml", "--allow-code", "marked:soft").config
    assert config.search.activations == ("relu", "marked:soft") and Path("imported").exists()


def test_a_file_on_s3_is_read(command: Read, s3: Storage) -> None:
    s3.write("config.yaml", RECIPES["digits_smoke"]().as_yaml())
    assert command("--config", f"{s3.uri}/config.yaml").config == RECIPES["digits_smoke"]()
    with pytest.raises(ValueError, match=r"--config s3://.*/no.yaml cannot be read"):
        command("--config", f"{s3.uri}/no.yaml")


def test_the_command_takes_the_file(command: Read, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(RECIPES["digits_smoke"]().as_yaml())
    storage = ("--storage", str(tmp_path / "runs"))
    done = pipeline("sweep", "--config", str(tmp_path / "a.yaml"), *storage, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{describe(command('digits_smoke', *storage))}\n"
