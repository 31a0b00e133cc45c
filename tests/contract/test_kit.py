"""The conformance kit finds every fault it is there for and none in a sound plugin; zero checks are a failure."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from flowfactory.cli.main import main
from flowfactory.discovery.entries import KINDS
from flowfactory.errors import PluginError
from flowfactory.testing import Case, Kit, conformance
from flowfactory.testing.kit import counted
from mutants import FAULTS, MUTANTS, Fault, Mutant, faulty, install

pytestmark = pytest.mark.slow

NAMES = {mutant: f"m{number}-{mutant.kind}" for number, mutant in enumerate(MUTANTS)}
SOUND = [kind.name for kind in KINDS.values()]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plugins of the templates, sound and with every fault."""
    folder = tmp_path_factory.mktemp("mutants")
    for kind in SOUND:
        install(folder, kind, f"sound-{kind}")
    for mutant, name in NAMES.items():
        install(folder, mutant.kind, name, mutant)
    return folder / "site"


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    return site


def case_of(mutant: Mutant) -> Case:
    (case,) = (case for case in Kit(NAMES[mutant]).cases if case.check.__name__ == mutant.check)
    return case


@pytest.mark.parametrize("kind", SOUND)
def test_nothing_is_found_in_a_sound_plugin(installed: Path, kind: str) -> None:
    outcomes = {case.id: case.outcome() for case in Kit(f"flowfactory-plugin-sound-{kind}").cases}
    assert {name: outcome for name, outcome in outcomes.items() if not outcome.good} == {}
    assert sum(outcome.result == "passed" for outcome in outcomes.values()) >= 20


OTHER_ADVANTAGES = {
    "best-of-n": "1.0 if rank == last else math.nan",
    "pairs": "{0: -1.0, last: 1.0}.get(rank, math.nan)",
    "weighted": "math.exp(score)",
    "halves": "1.0 if rank > last / 2 else -1.0",
}
"""What a sample's advantage is, from its score and its rank in the group, worst first."""
CODE = """\
    def advantages(self, scores, groups):
        import math
        (values,) = scores.values.values()
        found = values.double().clone()
        for group in set(groups.tolist()):
            own = [i for i in range(len(groups)) if groups[i] == group and not values[i].isnan()]
            ranks = {i: r for r, i in enumerate(sorted(own, key=lambda i: float(values[i])))}
            last = len(own) - 1
            if len({float(values[i]) for i in own}) == 1:
                ranks = dict.fromkeys(own, last)
            for i in own:
                rank, score = ranks[i], float(values[i])
                found[i] = ADVANTAGE
        return found

    def terms("""


@pytest.mark.parametrize("name", OTHER_ADVANTAGES)
def test_trainers_with_other_advantages_are_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    code = CODE.replace("ADVANTAGE", OTHER_ADVANTAGES[name])
    distribution = install(
        tmp_path, "trainer", f"my-{name}", Mutant(name, "trainer", "trainer.py", "    def terms(", code, "", "")
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    importlib.invalidate_caches()
    outcomes = {case.id: case.outcome() for case in Kit(distribution).cases}
    assert {case: outcome.why for case, outcome in outcomes.items() if not outcome.good} == {}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("[1 / (len(samples) - 1) for _ in samples]", "ZeroDivisionError: division by zero"),
        ("[1.0] * 4", "asked about a group of 1, it fails"),
        ("[float(len(samples) > 1 or 1) for _ in samples]", ""),
        ("[None if len(samples) == 1 else 1.0 for _ in samples]", ""),
    ],
)
def test_group_rewards_are_asked_about_groups_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, words: str
) -> None:
    name = f"my-group-{abs(hash(body))}"
    distribution = install(tmp_path, "reward", name)
    (source,) = (tmp_path / "site").glob("*/reward.py")
    text = source.read_text().replace("Reward, Sample", "GroupReward, Sample").replace("(Reward)", "(GroupReward)")
    head, _, _ = text.partition("        wanted = ")
    source.write_text(f"{head}        return {body}\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    importlib.invalidate_caches()
    (case,) = (case for case in Kit(distribution).cases if case.check.__name__ == "groups_of_any_size")
    outcome = case.outcome()
    assert outcome.result == ("failed" if words else "passed")
    assert words in outcome.why


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: re.sub(r"\W+", "-", f"{mutant.kind}-{mutant.name}"))
def test_the_fault_is_found(installed: Path, mutant: Mutant) -> None:
    outcome = case_of(mutant).outcome()
    assert outcome.result == "failed"
    assert mutant.words in outcome.why


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: re.sub(r"\W+", "-", f"{fault.entry}-{fault.name}"))
def test_the_fault_of_a_trainer_of_groups_or_data_is_found(fault: Fault) -> None:
    outcome = faulty(fault).outcome()
    assert outcome.result == "failed"
    assert fault.words in outcome.why


def test_there_are_many_faults() -> None:
    assert len(MUTANTS) >= 40
    assert {mutant.kind for mutant in MUTANTS} == set(SOUND)


def test_a_broken_hook_module_fails_and_is_not_passed_over(installed: Path) -> None:
    (mutant,) = (mutant for mutant in MUTANTS if mutant.name == "misspelt hook")
    outcomes = [case.outcome() for case in Kit(NAMES[mutant]).cases]
    assert len(outcomes) >= 10
    assert {outcome.result for outcome in outcomes} >= {"failed"}


def test_expected_failures_are_strict_and_carry_their_reason(installed: Path) -> None:
    (mutant,) = (mutant for mutant in MUTANTS if mutant.name == "a sum for a mean")
    name = NAMES[mutant]
    reasons = {f"trainer {name}: microbatch_invariance": "it sums", f"trainer {name}: names_agree": "no reason"}
    found = {case.check.__name__: case.outcome() for case in Kit(name, expected_failures=reasons).cases}
    assert (found["microbatch_invariance"].result, found["microbatch_invariance"].why) == ("expected", "it sums")
    assert found["names_agree"].result == "unexpected"
    assert not found["names_agree"].good
    with pytest.raises(ValueError, match=r"did you mean `trainer .*: learns`"):
        Kit(name, expected_failures={f"trainer {name}: learn": "slow"})


def test_zero_checks_are_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PluginError, match="there is nothing to check"):
        conformance("flowfactory-plugin-nobody-has")
    assert main(["plugins", "check", "nobody-has"]) == 3
    assert "there is nothing to check" in capsys.readouterr().err


def test_the_shell_prints_every_case_and_counts_them(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "check", "sound-reward"]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    others = {"groups_of_any_size", "value_agrees_with_score", "value_has_a_gradient"}
    left, passed = len(others), len(lines) - len(others)
    assert said.err.splitlines()[-1] == f"{len(lines)} checks: {passed} passed, {left} not applicable"
    owed = [line for line in lines if line.partition(" reward sound-reward: ")[2].split()[0].rstrip(":") not in others]
    assert len(owed) == passed
    assert all(line.startswith("ok ") for line in owed)
    (mutant,) = (mutant for mutant in MUTANTS if mutant.name == "random scores")
    assert main(["plugins", "check", f"flowfactory-plugin-{NAMES[mutant]}", "--json"]) == 3
    said = capsys.readouterr()
    failed = [case for case in json.loads(said.out) if case["result"] == "failed"]
    assert {"repeatable"} <= {case["case"].partition(": ")[2] for case in failed}
    assert all(case["what"] and case["why"] for case in failed)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "colour=1"], "--set expects ENTRY.KEY=VALUE"),
        (["--prompts", "nowhere.txt"], "there is no"),
    ],
)
def test_the_shell_refuses_bad_usage(
    installed: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert main(["plugins", "check", "sound-reward", *options]) == 2
    assert words in capsys.readouterr().err


def test_keys_reach_the_entry(installed: Path) -> None:
    kit = Kit("sound-reward", keys={"sound-reward": {"colour": [2.0, 0.0, 0.0]}})
    (case,) = (case for case in kit.cases if case.check.__name__ == "loads_offline")
    assert "expected a number at most 1" in case.outcome().why


def test_counting() -> None:
    outcomes = [case.outcome() for case in Kit("ode").cases]
    assert counted(outcomes) == f"{len(outcomes)} checks: {len(outcomes)} passed"


def test_pytest_is_not_needed() -> None:
    code = (
        "import sys; sys.modules['pytest'] = None; from flowfactory.cli.main import main; "
        "raise SystemExit(main(['plugins', 'check', 'ode', '--json']))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_local_file_is_checked_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        'from flowfactory import NoKeys, Provides, hookimpl\n\ndef red(samples):\n    """How red."""\n'
        "    return [float(s.media[..., 0, :, :].mean()) for s in samples]\n\n@hookimpl\ndef flowfactory_rewards():\n"
        "    yield Provides('redness', NoKeys, red, 'How red it is.')\n"
    )
    assert main(["plugins", "check", str(file)]) == 0
    said = capsys.readouterr().out
    assert "ok          reward redness: permutation" in said
    file.write_text(file.read_text().replace("for s in samples]", "for s in samples][::-1]"))
    assert main(["plugins", "check", str(file)]) == 3
    assert main(["plugins", "check", str(tmp_path / "absent.py")]) == 3
