"""Wrong input is one line that says what to change, exit code 2, no traceback. Help is quick and imports no torch."""

import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from ral_system.config.base import Group
from ral_system.config.commands import COMMANDS
from ral_system.config.known import is_known
from ral_system.errors import GATE_COUNTERS
from ral_system.tasks.visual_search import words
from tests.composed import CONF
from tests.gemma3_model import build_gemma3
from tests.llava_onevision_model import build_llava_onevision

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

LOCAL = ("experiment=smoke", "cluster=local", "cluster.threads_per_process=1")
GROUPS = {str(path.parent.relative_to(CONF)) for path in CONF.rglob("*.yaml")}
HEAVY = ("torch", "transformers", "ray", "vllm", "deepspeed", "sklearn")


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Path:
    """A model folder with the vocabulary and processor of a start model."""
    return tiny_model


_IN_THE_HEAD = re.compile(r"(\d\d:){2}\d\d (run |\w+: attention by )| {9}\w")


def assert_refused(done, *says: str) -> None:
    assert done.returncode == 2, (done.returncode, done.stderr)
    beside_the_head = [line for line in done.stderr.splitlines() if not _IN_THE_HEAD.match(line)]
    assert len(beside_the_head) == 1 and beside_the_head[0].startswith("error: "), done.stderr
    for text in says:
        assert text in beside_the_head[0], (text, done.stderr)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("algorithm.clip=1", "algorithm.clip: unknown key; ral-train --cfg job shows the known ones"),
        ("+algorithm.clip=1", "algorithm.clip: unknown key; remove it"),
        ("+extra.key=1", "extra: unknown key; remove it"),
        ("nogroup=x", "nogroup: unknown key"),
        ("algorithm.steps=abc", "algorithm.steps='abc': not an integer; write one in digits"),
        ("algorithm.steps=0", "algorithm.steps=0: out of range; set it above 0"),
        ("algorithm.kl=3", "algorithm.kl=3: not a group of settings; set its keys"),
        (
            "algorithm.updates_per_step=1",
            "set algorithm.updates_per_step or passes_per_step to 2 or more",
        ),
        ("~algorithm.steps", "algorithm.steps: missing; set it"),
        ("name=a/b", "name='a/b': a run's name has letters, digits, '_', '.' and '-' only; set name=a_b"),
        ("algorithm.stepz=5", "algorithm.stepz: unknown key; did you mean algorithm.steps=5?"),
        ("+learner.lr=1", "learner.lr: unknown key; remove it; did you mean learner.learning_rate?"),
        ("seed=0,1", "seed=0,1: several values; add -m to run a job for each"),
        ("cluster=nope", "cluster=nope: no such option; use one of local, ray"),
        ("experiment=nope", "experiment=nope: no such option; use one of"),
        ("algorithm=null", "algorithm=null: not the name of an option; write algorithm=OPTION, or leave it out"),
        ("name=${nope}", "name=${nope}: there is no key nope; correct it"),
        ("model.tiny.tokenizer=qwen", "model.tiny.tokenizer=qwen: no such folder; give a local folder"),
        ("foo", "override 'foo' cannot be read"),
        ("algorithm.steps=[1,", "override 'algorithm.steps=[1,' cannot be read"),
        ("--bogus", "unrecognized arguments: --bogus; a setting is KEY=VALUE, without dashes; see ral-train --help"),
        ("--experiment=smoke", "unrecognized arguments: --experiment=smoke; a setting is KEY=VALUE, without dashes"),
        ("learner.lora=true", "learner.lora=true: not a group of settings; give all of it, as in 'learner.lora={rank:"),
        (
            "learner.engine=torch",
            "learner.engine=torch has no zero_stage, offload, sequence_parallel and collective_timeout_s; choose",
        ),
    ],
)
def test_mistakes_in_the_configuration(commands, tmp_path: Path, override: str, says: str) -> None:
    done = commands("ral-train", "experiment=smoke", override, cwd=tmp_path, timeout_s=120)
    assert_refused(done, says)
    assert not list(tmp_path.iterdir())


def test_a_yaml_file_that_cannot_be_read(commands, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("name: [unclosed\n")
    done = commands("ral-train", "--config-dir", str(tmp_path), "experiment=mine", cwd=tmp_path, timeout_s=120)
    assert_refused(done, "mine.yaml", "line 2")


def test_an_experiment_that_would_set_nothing(commands, tmp_path: Path) -> None:
    """Without its first line Hydra puts a user's file below the key `experiment`, and every default would train."""
    mine = tmp_path / "mine" / "experiment" / "bad.yaml"
    mine.parent.mkdir(parents=True)
    run = ("ral-train", "--config-dir", str(tmp_path / "mine"))
    remedy = 'make "# @package _global_" the first line of the file'
    mine.write_text("name: x\nalgorithm: {stepz: 3}\n")
    done = commands(*run, "experiment=bad", cwd=tmp_path, timeout_s=120)
    assert_refused(done, "experiment=bad: its keys (name, algorithm) are below the key experiment", remedy)
    jobs = commands(*run, "-m", "experiment=bad", "seed=0,1", cwd=tmp_path, timeout_s=120)
    assert (jobs.returncode, jobs.stderr.count(remedy)) == (1, 4), jobs.stderr  # each job's end, and the summary
    mine.write_text("# @package _global_\nname: x\nalgorithm: {stepz: 3}\n")
    done = commands(*run, "experiment=bad", cwd=tmp_path, timeout_s=120)
    assert_refused(done, "algorithm.stepz: unknown key; remove it; did you mean algorithm.steps?")
    assert not (tmp_path / "runs" / "x").exists()


def test_a_reward_function_that_is_not_there_is_refused_before_perceive(commands, tmp_path: Path) -> None:
    mine = ("reward=function", "reward.function=nope:f")
    assert_refused(commands("ral-train", *LOCAL, *mine, cwd=tmp_path), "No module named 'nope'")
    assert not list(tmp_path.iterdir())


def test_models_that_are_not_there_or_not_whole(commands, model: Path, tmp_path: Path) -> None:
    empty, half, damaged = tmp_path / "empty", tmp_path / "half", tmp_path / "damaged"
    empty.mkdir()
    shutil.copytree(model, half)
    for name in ("processor_config.json", "preprocessor_config.json"):
        (half / name).unlink(missing_ok=True)
    shutil.copytree(model, damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    partly = tmp_path / "partly"
    shutil.copytree(model, partly)
    tensors = load_file(partly / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, partly / "model.safetensors", metadata={"format": "pt"})
    for overrides, says in (
        ([f"start_model={empty}"], (f"start_model={empty}: no config.json there; give a folder",)),
        (["model.path=runs/misspelt/model"], ("model.path=runs/misspelt/model: no such folder; correct the path",)),
        ([f"start_model={half}"], (f"cannot load a processor from {half}",)),
        ([f"start_model={damaged}"], (f"cannot load a model from {damaged}",)),
        ([f"start_model={partly}"], (f"model folder {partly}: 1 weights are missing, lm_head.weight first",)),
        ([], ("rl has no model to start from", "run ral-sft first, or set start_model")),
    ):
        done = commands("ral-rl", *LOCAL, *overrides, cwd=tmp_path)
        assert (done.returncode, done.stderr.splitlines()[-1][:7]) == (2, "error: "), done.stderr
        assert all(text in done.stderr.splitlines()[-1] for text in says), done.stderr
        assert not (tmp_path / "runs").exists(), overrides
    # None of these binds the folder: the corrected command is not refused for having changed.
    done = commands("ral-rl", *LOCAL, f"start_model={model}", "algorithm.steps=1", "seed=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_damaged_picture_is_named(commands, model: Path, tmp_path: Path) -> None:
    """The store writes a picture once; a run that finds its file damaged says so and trains on nothing else."""
    run = [*LOCAL, f"start_model={model}", "algorithm.steps=1", "evaluation.every=0"]
    assert commands("ral-rl", *run, cwd=tmp_path).returncode == 0
    pictures = sorted((tmp_path / "runs" / "smoke" / "media").glob("*/*.image"))
    for picture in pictures:
        picture.write_bytes(picture.read_bytes()[:40])
    shutil.rmtree(tmp_path / "runs" / "smoke" / "model")
    done = commands("ral-rl", *run, cwd=tmp_path)
    error = done.stderr.splitlines()[-1]
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert error.startswith("error: media ")
    assert "is damaged" in error
    assert "delete it to store it again" in error
    assert any(str(picture) in error for picture in pictures)
    for picture in pictures:
        picture.unlink()
    done = commands("ral-rl", *run, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_gate_that_fails_is_counted_and_another_start_model_is_refused(commands, model: Path, tmp_path: Path) -> None:
    other = shutil.copytree(model, tmp_path / "other")
    run = [*LOCAL, "algorithm.steps=1", "evaluation.every=0"]
    done = commands("ral-rl", *run, "rollout.log_prob_gate.token=1e-12", f"start_model={model}", cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    assert "rollout and learner log-probs differ by" in done.stderr.splitlines()[-1]
    folder = tmp_path / "runs" / "smoke"
    summary = json.loads((folder / "summary.json").read_text())
    assert {name: summary[name] for name in GATE_COUNTERS} == dict.fromkeys(GATE_COUNTERS, 0) | {"log_prob_failures": 1}
    assert re.search(r'data-headline="?gates_failed"?[^<]*>\s*1\s*<', (folder / "report.html").read_text())
    assert not (folder / "metrics.jsonl").read_text() and not list(folder.glob("checkpoints/rl/*"))  # not evaluated
    done = commands("ral-rl", *run, f"start_model={model}", cwd=tmp_path)
    assert done.returncode == 0 and "engines and learner agree" in done.stderr, done.stderr
    # the reference policy would silently be another one
    done = commands("ral-rl", *run, "algorithm.steps=2", f"start_model={other}", cwd=tmp_path)
    assert_refused(done, f"start_model={other}", f"started from {model}", "or set another name")


def test_engines_that_differ_end_a_cold_start_before_its_first_step(commands, model: Path, tmp_path: Path) -> None:
    run = [*LOCAL, "stages=[sft]", f"start_model={model}"]
    done = commands("ral-train", *run, "rollout.log_prob_gate.token=1e-12", cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and re.match(r"error: sample \S+: rollout and learner log-probs differ by ", errors[0])
    folder = tmp_path / "runs" / "smoke"
    assert not (folder / "metrics.jsonl").read_text() and not list(folder.glob("checkpoints/sft/*"))
    assert json.loads((folder / "summary.json").read_text())["log_prob_failures"] == 1
    done = commands("ral-train", *run, "rollout.log_prob_gate.token=1e-4", cwd=tmp_path)
    assert done.returncode == 0 and "engines and learner agree" in done.stderr, done.stderr


def test_run_folders_that_cannot_be_written(commands, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert_refused(
        commands("ral-train", *LOCAL, f"runs_dir={tmp_path}/file", cwd=tmp_path, timeout_s=120),
        f"run folder {tmp_path}/file/smoke cannot be written (Not a directory",
        "set runs_dir to a folder that you may write to",
    )
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "smoke").touch()
    assert_refused(
        commands("ral-train", *LOCAL, cwd=tmp_path, timeout_s=120),
        f"run folder {tmp_path}/runs/smoke cannot be written",
        "or another name",
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_run_folder_without_permission(commands, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir(mode=0o555)
    assert_refused(
        commands("ral-train", *LOCAL, cwd=tmp_path, timeout_s=120), "Permission denied", "set runs_dir to a folder"
    )


@pytest.mark.long
def test_a_cluster_that_is_too_small(commands, model: Path, tmp_path: Path) -> None:
    overrides = ("experiment=smoke", f"start_model={model}", "cluster=ray", "cluster.cpus_per_learner=100")
    done = commands("ral-rl", *overrides, cwd=tmp_path)
    assert_refused(done, "the run needs 20", "learner 2 x 100", "lower cluster.cpus_per_*")


@pytest.fixture
def nobody() -> Iterator[int]:
    """A port that nobody listens on: bound, so nobody takes it meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_a_cluster_that_is_not_there(commands, model: Path, tmp_path: Path, nobody: int) -> None:
    run, address = ("ral-rl", "experiment=smoke", f"start_model={model}"), f"127.0.0.1:{nobody}"
    for done in (
        commands(*run, f"cluster.address={address}", cwd=tmp_path, timeout_s=120),
        commands(*run, cwd=tmp_path, timeout_s=120, RAY_ADDRESS=address),
    ):
        assert_refused(done, f"no Ray cluster answers at {address}", "start one with `ray start --head`")


def test_models_that_vllm_cannot_serve_are_refused_before_a_cluster_is_looked_for(
    commands, tmp_path: Path, nobody: int
) -> None:
    two_way, fresh = tmp_path / "two_way", tmp_path / "fresh"
    build_gemma3(two_way, words())
    build_llava_onevision(fresh, words())
    weights = fresh / "model.safetensors"
    renamed = {n.replace("vision_tower.vision_model.", "vision_tower."): w for n, w in load_file(weights).items()}
    save_file(renamed, weights, metadata={"format": "pt"})
    run = ("experiment=smoke", "rollout=vllm")
    for program, model, says in (
        ("ral-rl", two_way, "rollout.engine=vllm on a CPU: its attention is causal within pictures"),
        ("ral-rl", fresh, f"model folder {fresh}: model.safetensors has vision_tower.embeddings"),
        ("ral-sft", two_way, "choose rollout=hf, or engines on GPUs"),
        ("ral-evaluate", two_way, "choose rollout=hf, or engines on GPUs"),
    ):
        trains = () if program == "ral-evaluate" else ("cluster=ray", f"cluster.address=127.0.0.1:{nobody}")
        done = commands(program, *run, *trains, f"start_model={model}", cwd=tmp_path, timeout_s=120)
        assert_refused(done, says)
        assert not (tmp_path / "runs").exists(), program


@pytest.mark.parametrize(
    "program", ["ral-train", "ral-perceive", "ral-sft", "ral-rl", "ral-evaluate", "ral-data", "ral-synthesize"]
)
def test_help_teaches(commands, tmp_path: Path, program: str) -> None:
    done = commands(program, "--help", cwd=tmp_path, timeout_s=60)
    assert (done.returncode, done.stderr) == (0, "")
    own = done.stdout.split("\n\n")[0].splitlines()
    assert re.match(rf"{program}[: ]", own[0])
    assert sum(line.startswith(f"  {program} ") for line in own[1:]) >= 2  # examples of its own
    for text in ("--cfg job", "--config-dir DIR", f'eval "$({program} -sc install=bash)"'):
        assert text in done.stdout
    examples = re.findall(r"^  +(?:.* -- )?(ral-[a-z]+) (?:-m )?[a-z_]+=", done.stdout, re.MULTILINE)
    assert set(examples) == {program}  # none of another command
    algorithms = sorted(file.stem for file in (CONF / "algorithm").glob("*.yaml"))
    for group in (f"algorithm: {', '.join(algorithms)}", "quickstart"):
        assert group in done.stdout
    listed = set(re.findall(r"^([a-z/_]+): ", done.stdout.partition("Groups:\n")[2], re.MULTILINE))
    assert listed - {"data/source", "experiment"} == {
        group for group in GROUPS if is_known(group.replace("/", "."), COMMANDS[program])
    }
    listed = ("experiment: ", "algorithm: ", "algorithm/policy_loss: ", "reward: ")  # Hydra lists them in one line
    ours = [line for line in done.stdout.splitlines() if not line.startswith(listed)]
    assert max(map(len, ours)) <= 120
    assert len(done.stdout.splitlines()) <= 60


def test_the_help_of_training_shows_the_ways_to_run_it(commands, tmp_path: Path) -> None:
    shown = commands("ral-train", "--help", cwd=tmp_path, timeout_s=60).stdout
    for text in ("ral-train experiment=smoke", "cluster=local", "ray job submit", "ral-train -m experiment=smoke"):
        assert text in shown


@pytest.mark.parametrize("arguments", [("--help",), ("--cfg", "job"), ("experiment=quickstart", "--cfg", "job")])
def test_help_and_the_configuration_are_quick_and_import_no_torch(commands, tmp_path: Path, arguments) -> None:
    began = time.monotonic()
    done = commands("ral-train", *arguments, cwd=tmp_path, timeout_s=60, fresh=True, PYTHONPROFILEIMPORTTIME="1")
    took = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "ral_system.config.commands" in imported
    assert sorted(imported & set(HEAVY)) == []
    assert took < 20  # half a second on an idle machine
    assert not list(tmp_path.iterdir())


def test_folders_of_the_user_with_our_folders_names_hide_nothing(commands, tmp_path: Path) -> None:
    """As in a project that keeps its Hydra files in conf/, submitted with its working directory."""
    for name in ("actors", "conf", "launch"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    done = commands("ral-train", "--cfg", "job", cwd=tmp_path, timeout_s=60, fresh=True, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "runs_dir: runs" in done.stdout


def test_a_model_of_an_unknown_family_is_refused_before_anything_is_said(commands, model: Path, tmp_path: Path) -> None:
    other = shutil.copytree(model, tmp_path / "other")
    (other / "config.json").write_text('{"model_type": "pixtral"}')
    for program, field in (
        ("ral-rl", "start_model"),
        ("ral-rl", "model.path"),
        ("ral-evaluate", "start_model"),
        ("ral-data", "model.path"),
        ("ral-plan", "start_model"),
    ):
        place = ("experiment=smoke",) if program == "ral-data" else LOCAL
        done = commands(program, *place, f"{field}={other}", cwd=tmp_path, timeout_s=120)
        assert_refused(done, f"{field}={other}: model_type=pixtral belongs to no known family; choose one of ")
        assert len(done.stderr.splitlines()) == 1, done.stderr  # no head of a run
        assert not (tmp_path / "runs").exists(), program


def test_files_that_are_not_there_are_refused_before_a_model_is_downloaded(commands, tmp_path: Path) -> None:
    given = ("experiment=video_r1_qwen2_5_vl_7b_8gpu", "start_model=org/model")
    for program in ("ral-train", "ral-evaluate", "ral-data"):
        done = commands(program, *given, cwd=tmp_path, timeout_s=120, HF_HUB_OFFLINE="1")
        assert_refused(done, "data.sources.main.path=Video-R1-260k.json: no such file or folder; correct it")
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert not (tmp_path / "runs").exists(), program


def test_a_model_that_cannot_be_downloaded_is_named_by_its_field(commands, tmp_path: Path) -> None:
    done = commands("ral-plan", "experiment=smoke", "start_model=org/model", cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert_refused(done, "start_model=org/model: not a local folder, and the download", "give a local folder, or give")


def test_a_teacher_that_is_not_there_is_refused_before_any_training(commands, tmp_path: Path) -> None:
    teacher = ("algorithm=distill", f"teacher.path={tmp_path}/nobody")
    done = commands("ral-train", *LOCAL, *teacher, cwd=tmp_path, timeout_s=120)
    assert_refused(done, f"teacher.path={tmp_path}/nobody: no such folder")
    assert not list(tmp_path.iterdir())


def test_training_is_not_steered(commands, tmp_path: Path) -> None:
    done = commands("ral-train", *LOCAL, "intervention.image=0.15", cwd=tmp_path, timeout_s=120)
    assert_refused(done, "intervention.image=0.15: ral-train does not read it; ral-evaluate does; remove it")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("program", "kind"), COMMANDS.items())
def test_the_configuration_that_is_printed_has_the_keys_of_the_command(
    commands, tmp_path: Path, program: str, kind: type[Group]
) -> None:
    given = ("--cfg", "job", "--resolve", "experiment=avar_quickstart")
    done = commands(program, *given, cwd=tmp_path, timeout_s=60)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout).keys() - {"experiment"} == kind.model_fields.keys()


def test_reports_and_evaluations_refuse_in_one_line(commands, tmp_path: Path) -> None:
    assert_refused(commands("ral-report", str(tmp_path / "none"), cwd=tmp_path, timeout_s=120), "none")
    assert_refused(
        commands("ral-evaluate", *LOCAL, cwd=tmp_path, timeout_s=120), "start_model=null: no model to evaluate"
    )
    assert_refused(
        commands("ral-evaluate", *LOCAL, f"start_model={tmp_path}", cwd=tmp_path, timeout_s=120), "no config.json there"
    )
