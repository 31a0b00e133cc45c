"""What becomes of broken specs: how many are refused before torch, and whether those accepted do what they say.

    python tests/benchmarks/mutants.py [--mutants 1500] [--runs 60] [--seed 0]

Half of the mutants are of tiny runs, the other half of every example; they are checked in an interpreter that cannot
import torch. Some of the accepted ones then run, on a checkpoint of a few hundred KB. A run that ends well must have
done what is written: so many epochs, steps, evaluations, samples and checkpoints, at that learning rate; a run that
ends otherwise must say why. Where a key is said to have no effect on results, the weights must be those of the unbroken
spec.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))
LOOK = "--look" in sys.argv
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "peft")
if LOOK:
    sys.modules.update(dict.fromkeys(HEAVY))  # type: ignore[arg-type]  # importing one raises

import mutations  # noqa: E402
from flowfactory.discovery.registry import Registry  # noqa: E402
from flowfactory.errors import SpecError  # noqa: E402
from flowfactory.plan import disk  # noqa: E402
from flowfactory.plan.plan import Plan, make_plan  # noqa: E402
from flowfactory.spec import toml  # noqa: E402
from flowfactory.spec.structure import load_spec  # noqa: E402
from flowfactory.spec.tables import unstructure  # noqa: E402

LARGEST = {"samples": 64, "sampling_calls": 200, "epochs": 4, "optimizer_steps": 16, "refill_calls": 400}
"""Of the plan's numbers, what a run here may have."""

ROUNDING = 1e-5
"""How far sums in another order may move a weight."""

TUNINGS = {
    "full-grpo": ('[trainer]\nname = "grpo"', "[full]", '[scheduler]\nname = "flow-sde"'),
    "lora-nft": ('[trainer]\nname = "nft"', "[lora]\nrank = 2", '[scheduler]\nname = "ode"'),
    "lora-awm": ('[trainer]\nname = "awm"', "[lora]\nrank = 2", '[scheduler]\nname = "dpm-solver"'),
}
SPEC = """
plugins = ["./rewards.py"]

[run]
name = "tiny"
epochs = 2
save_samples = 4

[model]
name = "flux"
path = "{checkpoint}"
max_sequence_length = 16

{tuning}

[data]
prompts = "train.txt"
eval_prompts = "eval.txt"

[sampling]
size = 32
steps = 4
prompts = 4
group = 2

{scheduler}

{trainer}

[[reward]]
name = "redness"

[optimizer]
lr = 1e-3
updates = 2

[memory]
cache = "{cache}"

[eval]
every = 1
"""
REWARDS = """
from flowfactory import NoKeys, Provides, hookimpl


def redness(samples):
    return [float(s.media[0].mean() - s.media[1:].mean()) for s in samples]


@hookimpl
def flowfactory_rewards():
    yield Provides("redness", NoKeys, redness, "How red an image is.")
"""

Record = dict[str, Any]


def lay(folder: Path) -> list[Path]:
    """The tiny specs, with every key written out."""
    from flowfactory_plugin_flux.flux import Flux

    checkpoint = Flux.tiny(folder / "checkpoint")
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "train.txt").write_text("a cat\na dog\na bird\na fish\na horse\na cow\n")
    (folder / "eval.txt").write_text("a tree\na house\n")
    found = []
    for name, (trainer, tuning, scheduler) in TUNINGS.items():
        path = folder / f"{name}.toml"
        keys = {"trainer": trainer, "tuning": tuning, "scheduler": scheduler}
        path.write_text(SPEC.format(checkpoint=checkpoint, cache=folder / "cache", **keys))
        path.write_text(toml.dumps(unstructure(load_spec(path, Registry()))))
        found.append(path)
    return found


def examples(folder: Path) -> list[Path]:
    """Copies of the plugins' whole examples."""
    for own in TESTS.parent.glob("plugins/*/examples"):
        shutil.copytree(own, folder / own.parent.name / "examples")
    paths = sorted(folder.glob("*/examples/*.toml"))
    return [path for path in paths if {"run", "extends"} & tomllib.loads(path.read_text()).keys()]


# --- without torch -------------------------------------------------------------------------------------------------


def look(paths: list[Path], count: int, seed: int) -> Iterator[Record]:
    """What becomes of `count` mutants of some specs, drawn evenly."""
    drawn = random.Random(seed)
    for number, path in enumerate(paths):
        everything = list(mutations.mutants(tomllib.loads(path.read_text()), mutations.WRONG, set()))
        share = count // len(paths) + (number < count % len(paths))
        for mutant in drawn.sample(everything, min(share, len(everything))):
            yield {"spec": path.stem, "mutation": mutant[0], "at": list(mutant[1]), **outcome(path, mutant)}
    assert not any(sys.modules[name] for name in HEAVY)


def outcome(path: Path, mutant: mutations.Mutant) -> Record:
    """Whether a mutant is refused, and in how many words; or accepted, and what is wrong with that."""
    text, registry = toml.dumps(mutant[2]), Registry()
    place = path.with_name(f"mutant-{path.name}")
    place.write_text(text, encoding="utf-8")
    try:
        plan = make_plan(load_spec(place, registry, (), (), disk.RULES), registry.versions())
    except SpecError as error:
        return {"outcome": "refused", "said": str(error.problems[0]).splitlines()[0]}
    except Exception as error:
        return {"outcome": "traceback", "said": repr(error), "text": text}
    finally:
        place.unlink()
    written = tomllib.loads(text)
    wrong = "" if "extends" in written else mutations.kept(written, unstructure(plan.spec))
    size = plan.spec.sampling.size
    small = all(plan[number.name] <= LARGEST.get(number.name, 10**9) for number in plan.numbers)
    small = small and max(size.height, size.width) <= 64 and (plan.spec.eval.steps or 0) <= 16
    return {"outcome": "accepted", "wrong": wrong, "small": small, "text": text}


# --- with torch ----------------------------------------------------------------------------------------------------


def run(spec: Path, folder: Path) -> tuple[int, str]:
    """Train; the exit code, and what was said."""
    from accelerate.state import AcceleratorState
    from flowfactory.cli.main import main

    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main(["run", str(spec), "--folder", str(folder)])
    AcceleratorState._reset_state(True)
    return code, said.getvalue()


def wrong_with(spec: Path, folder: Path, base: Path) -> str:
    """What a run did otherwise than its spec says; empty if nothing."""
    registry = Registry()
    loaded = load_spec(spec, registry)
    plan = make_plan(loaded, registry.versions())
    if load_spec(folder / "spec.toml", Registry()) != loaded:
        return "the run's own spec is another"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    epochs, every = loaded.run.epochs, loaded.eval.every
    if [line["epoch"] for line in lines] != list(range(epochs + 1)):
        return f"its lines are of {[line['epoch'] for line in lines]}"
    due = (
        {n for n in range(epochs + 1) if every and (n % every == 0 or n == epochs)}
        if loaded.data.eval_prompts
        else set()
    )
    found = {line["epoch"] for line in lines if any(name.startswith("eval/") for name in line)}
    if found != due:
        return f"evaluations after {sorted(found)}, not {sorted(due)}"
    for line in lines[1:]:
        step = line["epoch"] * loaded.optimizer.updates
        if line["lr"] != learning_rate(plan, step):
            return f"lr {line['lr']} at step {step}"
        kept = len(list((folder / "samples" / f"epoch-{line['epoch']:04d}").glob("*.png")))
        if kept != min(loaded.run.save_samples, plan["samples"]):
            return f"{kept} samples are kept"
    return wrong_checkpoints(plan, folder) or wrong_weights(plan, folder, base)


def learning_rate(plan: Plan, step: int) -> float:
    from flowfactory.spec.window import learning_rate

    return learning_rate(plan.spec.optimizer, step, plan.spec.run.epochs)


def wrong_checkpoints(plan: Plan, folder: Path) -> str:
    """Which checkpoints are not there, or are too many."""
    every, keep, epochs = plan.spec.checkpoint.every, plan.spec.checkpoint.keep, plan.spec.run.epochs
    if not epochs:
        return ""
    saved = sorted(int(path.name[6:]) for path in (folder / "checkpoints").glob("epoch-*"))
    due = [n for n in range(1, epochs + 1) if n == epochs or (every and n % every == 0)]
    state = json.loads((folder / "checkpoints" / f"epoch-{epochs:04d}" / "state.json").read_text())
    if state["step"] != plan["optimizer_steps"]:
        return f"{state['step']} steps, not {plan['optimizer_steps']}"
    best = plan.spec.checkpoint.best != "none"
    if not set(due[-keep:]) <= {*saved} and not best:
        return f"checkpoints {saved}, not {due[-keep:]}"
    return f"checkpoints {saved}" if len(saved) > keep + best else ""


def wrong_weights(plan: Plan, folder: Path, base: Path) -> str:
    """Whether the weights are finite, and those of `base` where nothing that decides them is another."""
    from safetensors.torch import load_file

    if not plan.spec.run.epochs:
        return ""
    file = Path("checkpoints") / f"epoch-{plan.spec.run.epochs:04d}" / "current.safetensors"
    own = load_file(folder / file)
    if any(not tensor.isfinite().all() for tensor in own.values()):
        return "weights are not finite"
    if plan.digest != json.loads((base / "plan.json").read_text())["digest"]:
        return ""
    other = load_file(base / file)
    furthest = max(float((own[name] - other[name]).abs().max()) for name in own)
    return f"weights are {furthest:g} from those of the unbroken spec" if furthest > ROUNDING else ""


def try_out(specs: list[Path], records: list[Record], folder: Path) -> Iterator[Record]:
    """Run some mutants, after the specs they are of."""
    for spec in specs:
        code, said = run(spec, folder / "base" / spec.stem)
        assert code == 0, said
    for number, record in enumerate(records):
        spec, out = folder / f"try-{number}.toml", folder / "runs" / str(number)
        spec.write_text(record["text"])
        code, said = run(spec, out)
        if code == 0:
            wrong = wrong_with(spec, out, folder / "base" / record["spec"])
        else:
            last = re.sub(r"\s+", " ", said)[-300:]
            wrong = f"exit {code}: {last}" if "Traceback" in said or not said.strip() else ""
        yield {**record, "code": code, "said": said.strip().splitlines()[-2:], "wrong": wrong}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=1500)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--look", nargs="*", type=Path)
    options = parser.parse_args()
    if LOOK:
        print(json.dumps(list(look(options.look, options.mutants, options.seed))))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        return survey(options, folder)


def survey(options: argparse.Namespace, folder: Path) -> int:
    """Both halves, and their figures."""
    tiny, half = lay(folder), options.mutants // 2
    published = examples(folder / "plugins")
    records: list[Record] = []
    for paths, count in ((tiny, half), (published, options.mutants - half)):
        command = [sys.executable, __file__, f"--mutants={count}", f"--seed={options.seed}", "--look", *map(str, paths)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        records += json.loads(done.stdout)
    print(json.dumps(Counter(record["outcome"] for record in records)))
    bad = [r for r in records if r["outcome"] == "traceback" or r.get("wrong")]
    accepted = [r for r in records if r["outcome"] == "accepted" and r["small"] and r["spec"] in TUNINGS]
    chosen = random.Random(options.seed).sample(accepted, min(options.runs, len(accepted)))
    print(f"{len(accepted)} of the accepted ones are small enough to run; {len(chosen)} are run", flush=True)
    codes: Counter[int] = Counter()
    for record in try_out(tiny, chosen, folder):
        codes[record["code"]] += 1
        if record["wrong"]:
            bad.append(record)
        print(
            record["code"],
            record["spec"],
            record["mutation"],
            record["at"],
            " ".join(record["said"]) if record["code"] else "",
            flush=True,
        )
    print(json.dumps(codes))
    for record in bad:
        print(f"WRONG {record['spec']} {record['mutation']} at {record['at']}: {record.get('wrong') or record['said']}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
