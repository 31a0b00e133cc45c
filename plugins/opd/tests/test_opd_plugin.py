"""The plugin as it is found: its examples are sound and carry the published numbers, its hooks import no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from flowfactory.data.rows import load_rows
from flowfactory.discovery.registry import Registry, installed_entries
from flowfactory.errors import SpecError
from flowfactory.plan import disk
from flowfactory.spec.structure import load_spec
from flowfactory.spec.tables import Lora, Spec
from flowfactory_plugin_opd import OPDSpec, Teacher
from flowfactory_plugin_opd.opd import OPD

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.toml"))


def example(name: str, *sets: str) -> Spec:
    (path,) = (path for path in EXAMPLES if path.stem == name)
    return load_spec(path, Registry(installed_entries()), sets, also=disk.RULES)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_sound(path: Path) -> None:
    spec = example(path.stem)
    assert spec.run.name == path.stem
    assert (spec.trainer.name, spec.trainer.spec.distance) == ("opd", "step")


def test_target_exists() -> None:
    assert Registry(installed_entries()).target("trainers", "opd") is OPD


def test_hooks_import_no_torch() -> None:
    script = "import sys, flowfactory_plugin_opd; raise SystemExit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


# guidances of student and teachers, scheduler, size, samples of an epoch, updates, rate
PUBLISHED = {
    "opd-sd35": (4.5, [None, None, 1.0], "ode", 512, 72, 1, 3e-4),
    "opd-sd35-ocr": (1.0, [None], "cps", 384, 64, 2, 1e-4),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_examples_carry_the_published_numbers(name: str) -> None:
    spec = example(name)
    sampling, tuning = spec.sampling, spec.tuning
    assert isinstance(tuning, Lora)
    guidances = [teacher.guidance for teacher in spec.trainer.spec.teachers]
    samples, updates, lr = sampling.prompts * sampling.group, spec.optimizer.updates, spec.optimizer.lr
    found = (sampling.guidance, guidances, spec.scheduler.name, sampling.size.height, samples, updates, lr)
    assert found == PUBLISHED[name]
    assert (sampling.steps, tuning.rank, tuning.alpha, spec.optimizer.weight_decay) == (10, 32, 64, 1e-4)


def test_every_teacher_has_prompts() -> None:
    spec = example("opd-sd35")
    found = {row.metadata["teacher"] for row in load_rows(Path(spec.data.prompts))}
    assert found == {teacher.name for teacher in spec.trainer.spec.teachers}


@pytest.mark.parametrize(
    ("teachers", "why"),
    [
        ("[]", "`teachers`: "),
        ("[{from='a/b'}, {from='a/c'}]", "several teachers are called `teacher`; give each a `name` of its own"),
        ("[{from='a/b', name='current'}]", "weights `current`: the name is no word or already taken"),
        ("[{from='./nothing'}]", "there is no "),
        ("[{from='a/b'}, {from='a/c', name='ocr'}]", "reads the column `teacher`: one of `ocr`, `teacher`, or a list"),
    ],
)
def test_what_does_not_fit_is_refused(teachers: str, why: str) -> None:
    with pytest.raises(SpecError) as raised:
        example("opd-sd35", f"trainer.teachers={teachers}")
    assert why in "\n".join(problem.what for problem in raised.value.problems)


def test_one_teacher_needs_no_column_and_several_do() -> None:
    one, two = Teacher(from_="a/b"), Teacher(from_="a/c", name="ocr")  # type: ignore[arg-type]
    assert OPDSpec(teachers=(one,)).needs.columns == {}
    assert OPDSpec(teachers=(one, two)).needs.columns == {"teacher": {"teacher", "ocr"}}
    assert OPDSpec(teachers=(one, two)).needs.loaded == {"teacher": "a/b", "ocr": "a/c"}
