"""Several processes give what one gives, whoever starts them; and when one is lost, all end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import forks
import pytest
from accelerate.state import AcceleratorState
from end_to_end.conftest import REWARDS, SPEC, metrics
from flowfactory.cli.main import main
from flowfactory.discovery.registry import Registry
from flowfactory.plan.plan import Plan, make_plan
from flowfactory.processes.traffic import traffic
from flowfactory.spec.structure import load_spec
from pair import fork
from safetensors.torch import load_file

TOLERANCE = 1e-5
"""Of each metric, and of each weight after two epochs at lr 1e-3: sums are added up in another order."""
DEVIATIONS = ("train/ratio_deviation", "train/first_deviation")
"""The largest rounding of a micro-batch, and that in clip widths of 1e-4: they are others in other batches."""

PAIR = Path(__file__).parent.parent / "pair.py"

# AdamW divides by roots of squares: eps keeps the noise of gradients near zero small. One of the prompts is never
# scored, so that in some updates one process has nothing to train on; three held-out prompts are one and two.
CHANGES = {
    "optimizer.eps": "1e-4",
    "sampling.micro_batch": "3",
    "optimizer.micro_batch": "2",
    "eval.micro_batch": "1",
    "checkpoint.every": "1",
    "reward[0].on_error": "drop-group",
    "reward[0].max_dropped": "1.0",
}
LIGHT = ("--unset=full", "--set=lora.rank=2", "--set=eval.every=0", "--set=sampling.steps=3", "--set=sampling.group=2")
ODE = "--set=scheduler={name='ode'}"
KINDS = {
    "full": (),
    "lora": ("--unset=full", "--set=lora.rank=2", "--set=trainer.kl_beta=0.1"),
    "groups": (
        "--unset=full",
        "--set=lora.rank=2",
        "--set=trainer.name=dgpo",
        "--set=model.quantize=nf4",
        "--set=trainer.times={rule='uniform', count=1}",
    ),
    "steps": ("--unset=full", "--set=lora.rank=2", "--set=trainer.name=stepgrpo", "--set=model.quantize=int8"),
    "branches": (
        "--unset=full",
        "--set=lora.rank=2",
        "--set=trainer={name='tempflow', width=2}",
        "--set=sampling.group=2",
        "--set=memory.offload=['weights', 'optimizer']",
    ),
    "tree": (*LIGHT, "--set=trainer={name='branchgrpo', splits=[0]}", "--set=scheduler.window={rule='all'}"),
    "roles": ("--set=trainer={name='tdm', fake_steps=1}", ODE, "--set=sampling.steps=2"),
    "student": (*LIGHT, "--set=trainer={name='dmd', fake_steps=1}", ODE),
    "gradients": (*LIGHT, "--set=trainer={name='draft', steps=2}", ODE, "--set=reward[0].name=blueness"),
}
WHOLE = ("branches", "tree", "student")
"""Those whose weights are not divided: branches and streamed weights refuse it, and `student` is much like `roles`."""
ONCE = ("--set=run.epochs=1", "--set=eval.every=0", "--set=optimizer.micro_batch=2")
COUNTED = {
    "whole": (*ONCE, "--unset=full", "--set=lora.rank=2"),
    "roles": (*ONCE, *KINDS["roles"]),
    "divided": (*ONCE, "--unset=full", "--set=lora.rank=2", SHARD := "--set=memory.shard=true"),
}
TEAMED = {"full": ("--set=memory.ulysses=2", SHARD), "lora": ("--set=memory.ulysses=2",)}
DROPS = "def redness(samples):\n    assert samples[0].row.prompt != 'a dog'\n"
VALUE = "def value(self, media, rows):\n"
FAULTY = REWARDS.replace("def redness(samples):\n", DROPS).replace(
    VALUE, f"{VALUE}        assert all(row.prompt != 'a dog' for row in rows)\n"
)
"""Of a group that is dropped no gradient is asked, which would end the run."""
LEADS = "    import os\n    assert os.environ.get('RANK', '0') == '0'\n"
"""What is asked of the second process of a team fails."""


def lay(folder: Path, checkpoint: Path, rewards: str = REWARDS) -> Path:
    """A spec and what it names."""
    folder.mkdir(exist_ok=True)
    (folder / "rewards.py").write_text(rewards)
    (folder / "train.txt").write_text("a cat\na dog\na bird\na fish\na horse\na cow\n")
    (folder / "eval.txt").write_text("a tree\na house\na lake\n")
    (folder / "spec.toml").write_text(SPEC.format(checkpoint=checkpoint))
    return folder / "spec.toml"


def alone(command: Sequence[str]) -> None:
    """A command in this process."""
    AcceleratorState._reset_state(True)
    assert main(command) == 0


def finished(command: Sequence[str], code: int = 0) -> subprocess.CompletedProcess[str]:
    """A command that has ended as expected."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """Runs by one process and by two, replicated, sharded and in a team, with LoRA and in full; resumptions of some."""
    folder = tmp_path_factory.mktemp("runs")
    spec = lay(folder / "spec", checkpoint, FAULTY)
    changes = [f"--set={key}={value}" for key, value in CHANGES.items()]

    def command(name: str, kind: str, *options: str) -> list[str]:
        return ["run", str(spec), "--folder", str(folder / name), *changes, *KINDS[kind], *options]

    for kind in KINDS:
        alone(command(f"one-{kind}", kind, *([] if kind in WHOLE else [SHARD])))
    together = [command(f"replicated-{kind}", kind) for kind in KINDS]
    together += [command(f"sharded-{kind}", kind, SHARD) for kind in KINDS if kind not in WHOLE]
    asks = REWARDS.replace("def redness(samples):\n", DROPS + LEADS)
    lay(folder / "leads", checkpoint, asks)
    for kind, options in TEAMED.items():
        _, _, *rest = command(f"teams-{kind}", kind, *options)
        between = ["--set=memory.encode=between", f"--set=memory.cache={folder / kind}"]
        together += [["run", str(folder / "leads" / "spec.toml"), *rest, *between]]
    for name in ("replicated-lora", "sharded-full", "sharded-roles", "one-full"):
        together += [["fork", str(folder / name), str(folder / f"resumed-{name}")]]
        together += [["resume", str(folder / f"resumed-{name}")]]
    plain = lay(folder / "plain", checkpoint)
    for name, options in COUNTED.items():
        own = ["run", str(plain), "--folder", str(folder / f"counted-{name}"), *options]
        together += [["counted", str(folder / f"{name}.json"), *own]]
    code, said = forks.pair(folder, PAIR, json.dumps([*together, ["divided"], ["teams"]]))
    assert code == 0, said
    return folder


def distance(one: Path, other: Path) -> float:
    """The largest difference of any metric, and of any number in the last checkpoint."""
    apart = [0.0]
    for a, b in zip(metrics(one), metrics(other), strict=True):
        # What passes the network is more where processes keep each other company; the rest has to be the same.
        assert {name for name in a if not name.startswith("network/")} <= b.keys()
        apart += [abs(a[name] - b[name]) for name in a if not name.startswith("network/") and name not in DEVIATIONS]
    files = [
        {file.name: file for file in (run / "checkpoints/epoch-0002").glob("*.safetensors")} for run in (one, other)
    ]
    assert files[0].keys() == files[1].keys() >= {"current.safetensors", "optimizer.safetensors"}
    for name in files[0]:
        first, second = (load_file(own[name]) for own in files)
        assert {k: (t.shape, t.dtype) for k, t in first.items()} == {k: (t.shape, t.dtype) for k, t in second.items()}
        apart += [float((first[key] - second[key]).abs().max()) for key in first]
    return max(apart)


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        *(
            (how, kind)
            for how in ("replicated", "sharded")
            for kind in KINDS
            if how == "replicated" or kind not in WHOLE
        ),
        *(("teams", kind) for kind in TEAMED),
    ],
)
def test_two_processes_train_what_one_trains(runs: Path, how: str, kind: str) -> None:
    assert json.loads((runs / f"{how}-{kind}" / "plan.json").read_text())["world"] == 2
    assert sum(line["reward/dropped_groups"] for line in metrics(runs / f"one-{kind}")[1:]) > 0
    assert distance(runs / f"one-{kind}", runs / f"{how}-{kind}") < TOLERANCE


@pytest.mark.parametrize("name", COUNTED)
def test_what_processes_send_is_what_was_planned(runs: Path, name: str) -> None:
    """Of two processes each sends half of what goes round, and of sums that twice, as rings do."""
    sizes = json.loads((runs / f"{name}.json").read_text())
    made = planned(runs / f"counted-{name}")
    found = traffic(made, 1e9)
    assert found is not None
    sent = {need.name: need.bytes for need in found.sent}
    assert sent["scores"] == (0 if name == "roles" else 6 * (8 + 9) // 2)  # trainer `tdm` asks for no scores
    largest = max(sizes["all_reduce"], default=0)
    if name == "divided":
        _, *gathers = sizes["all_gather_single"]  # the first, as weights are divided, is of no step
        assert sum(sizes["reduce_scatter_single"]) == made["updates"] * 2 * sent["gradients"]
        assert sum(gathers) == made["updates"] * 2 * sent["weights"]
    else:
        turns = 2 if name == "roles" else 1
        assert sizes["all_reduce"].count(largest) == made["updates"] * turns
        assert sent["gradients"] == largest * turns
    line = metrics(runs / f"counted-{name}")[-1]
    assert line["network/trained"] == made["trained_passes"]
    assert 2 * made["samples_per_process"] == made["samples"]


def planned(folder: Path) -> Plan:
    registry = Registry()
    return make_plan(load_spec(folder / "spec.toml", registry), registry.versions(), 2)


@pytest.mark.parametrize("name", ["replicated-lora", "sharded-full", "sharded-roles"])
def test_two_processes_go_on_as_if_never_interrupted(runs: Path, name: str) -> None:
    assert distance(runs / name, runs / f"resumed-{name}") == 0.0


def test_two_processes_go_on_with_what_one_began(runs: Path) -> None:
    assert distance(runs / "one-full", runs / "resumed-one-full") < TOLERANCE


def test_one_process_goes_on_with_what_two_began(runs: Path) -> None:
    """Two of a team, who had divided the weights besides."""
    fork(runs / "teams-full", runs / "alone")
    alone(["resume", str(runs / "alone")])
    assert distance(runs / "one-full", runs / "alone") < TOLERANCE


# --- who starts them -------------------------------------------------------------------------------------------------

SHORT = ("--set=run.epochs=1", "--unset=eval", "--unset=data.eval_prompts", SHARD)
FLOWFACTORY = ("-m", "flowfactory", "run")


def test_accelerate_can_start_them(spec: Path, tmp_path: Path) -> None:
    """With `--multi_gpu`, which is torchrun underneath; where there is no GPU the processes compute on the CPU."""
    options = ["--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    code, said = forks.launched(tmp_path, *options, *FLOWFACTORY, spec, "--folder", tmp_path / "run", *SHORT)
    assert code == 0, said
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["world"] == 2
    assert said.count("epoch 1/1") == 1


def test_srun_can_start_them(spec: Path, tmp_path: Path) -> None:
    """Each in the environment that srun gives a task; without a folder, on which they agree."""
    job = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
    }
    command = ["python", "-u", *FLOWFACTORY, str(spec), "--runs", str(tmp_path / "runs"), *SHORT]
    said = [tmp_path / f"said-{rank}.txt" for rank in range(2)]
    tasks = []
    for rank in range(2):
        said[rank].touch()
        task = {**os.environ, **job, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        tasks.append(forks.Forked(command, task, said[rank]))
    codes, told = [task.wait(timeout=300) for task in tasks], [file.read_text() for file in said]
    assert codes == [0, 0], told
    assert ("epoch 1/1" in told[0], "epoch 1/1" in told[1]) == (True, False)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["tiny"]
    assert json.loads((tmp_path / "runs" / "tiny" / "plan.json").read_text())["world"] == 2


# --- when one fails --------------------------------------------------------------------------------------------------

LOADS_ON_RANK_0_ONLY = """
import os
from flowfactory import Reward

class Redness(Reward):
    def load(self, device, dtype, shared):
        if os.environ["RANK"] == "1":
            raise ValueError("no such model")

    def score(self, samples):
        return redness(samples)
"""

IS_KILLED = """
import os, signal

def redness(samples):
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return [0.0 for s in samples]
"""


def fails(spec: Path, *options: str, code: int = 1) -> str:
    """What two processes of `--processes 2` say that end with a code."""
    ended, said = forks.flowfactory(spec.parent, "run", spec, *two(spec), *options)
    assert ended == code, said
    assert "Traceback" not in said, said
    return said


def two(spec: Path) -> list[str]:
    """Options of a run by two processes."""
    return ["--processes", "2", "--folder", str(spec.parent / "runs" / "two")]


def test_a_process_that_fails_ends_the_others_and_says_so_once(checkpoint: Path, tmp_path: Path) -> None:
    rewards = REWARDS.replace("@hookimpl", LOADS_ON_RANK_0_ONLY + "\n@hookimpl")
    spec = lay(tmp_path / "spec", checkpoint, rewards.replace("NoKeys, redness,", "NoKeys, Redness,"))
    assert fails(spec).count("ValueError: no such model") == 1


def test_what_every_process_finds_wrong_is_said_once(spec: Path) -> None:
    assert (
        fails(spec, "--set=memory.attention=nonsense").count("[memory] attention: diffusers knows no `nonsense`") == 1
    )
    (spec.parent / "train.txt").write_text("")
    assert fails(spec, code=2).count("train.txt: no prompts in it") == 1


def test_a_process_that_is_killed_ends_the_others_and_the_launcher_says_so_once(
    checkpoint: Path, tmp_path: Path
) -> None:
    """By a real SIGKILL, while the other waits for it in the network's own communication; nothing here is a fork."""
    spec = lay(tmp_path / "spec", checkpoint, REWARDS.replace("@hookimpl", IS_KILLED + "\n@hookimpl"))
    said = finished([sys.executable, *FLOWFACTORY, str(spec), *two(spec), SHARD], code=1).stderr
    assert "Traceback" not in said, said
    assert said.count("process 1 was killed by SIGKILL") == 1
    assert said.count("the run failed") == 1


def test_processes_that_read_different_specs_do_not_start(spec: Path) -> None:
    """As when one machine has an older copy of the prompts."""
    (spec.parent / "rewards.py").write_text(
        (spec.parent / "rewards.py").read_text()
        + "\nimport os, pathlib\n"
        + "if os.environ.get('RANK') == '1':\n"
        + "    import flowfactory.spec.holdings\n"
        + "    flowfactory.spec.holdings.fingerprint = lambda path: 'older'\n"
    )
    assert "read another spec, or other files, than process 0" in fails(spec)


def test_a_number_of_processes_that_does_not_divide_the_groups_is_refused(
    spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(spec), "--processes", "3"]) == 2
    assert "the nearest numbers of processes that divide them are 1, 2" in capsys.readouterr().err
