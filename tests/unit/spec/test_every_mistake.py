"""`check` tells every mistake at once: none hides another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from flowfactory.discovery.registry import Registry
from flowfactory.errors import Problem, SpecError
from flowfactory.names import aliases
from flowfactory.spec.structure import TABLES, load_spec
from specs import edited, lay


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry()


def told(folder: Path, *edits: tuple[str, str], sets: Sequence[str] = (), unsets: Sequence[str] = ()) -> list[Problem]:
    with pytest.raises(SpecError) as caught:
        load_spec(lay(folder, edited(*edits)), Registry(), sets, unsets)
    return list(caught.value.problems)


SDE = '"flow-sde"\nwindow = { rule = "random", size = 2 }'
RATE = "lr = 1e-4\nupdates = 2"


@pytest.mark.parametrize(
    ("edits", "kinds"),
    [
        (((RATE, 'lr = "1e-4"\nupdates = 3'),), {"wrong-type", "updates"}),
        (((RATE, "lr = -1\nupdates = 3"),), {"bad-value", "updates"}),
        (((RATE, "colour = 1\nlr = 1e-4\nupdates = 3"),), {"unknown-key", "updates"}),
        (((RATE, "updates = 3"),), {"missing-key", "updates"}),
        ((("size = 32", "size = '32'"), ("updates = 2", "updates = 3")), {"wrong-type", "updates"}),
        ((("size = 32", "size = '32'"), ('"random", size = 2', '"list", steps = [1, 9]')), {"wrong-type", "window"}),
        ((('"random", size = 2', '"all", size = 2, rat = 1'),), {"unknown-key", "window"}),
        ((("beta = 0.1", "beta = 'x'"), (SDE, '"ode"')), {"wrong-type", "density"}),
        ((('label = "dark"\nweight = -0.5', "weight = '1'"),), {"wrong-type", "labels"}),
        ((("target = 0.25", "target = 0.25\nlevel = 10\nwords = 3"),), {"bad-value", "wrong-type"}),
        (
            (("[data]", "[full]\ncolour = 1\n\n[data]"), ("rank = 4", "rank = 0\ncolour = 2")),
            {"two-tunings", "unknown-key", "bad-value"},
        ),
        (
            (("epochs = 3", "epochs = '3'"), ("eval_prompts", "eval_promts")),
            {"wrong-type", "unknown-key", "no-eval-prompts"},
        ),
        ((('name = "toy"', 'name = "tyo"'), ("updates = 2", "updates = 3")), {"plugin-missing", "updates"}),
    ],
)
def test_one_mistake_hides_no_other(tmp_path: Path, edits: Sequence[tuple[str, str]], kinds: set[str]) -> None:
    assert {problem.kind for problem in told(tmp_path, *edits)} == kinds


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ("track.to=[3,'wanb','tensrboard']", ["wrong-type", "tracker", "tracker"]),
        ("reward[0].sources=[3,'a']", ["wrong-type", "no-such-source"]),
        ("memory.offload=[3,'vea','vae']", ["wrong-type", "wrong-type"]),
        ("optimizer.betas=['x',1.5]", ["wrong-type", "bad-value"]),
        ("optimizer.betas=[2,1.5]", ["bad-value", "bad-value"]),
        ("optimizer.betas=[2,0.9,3]", ["wrong-type", "bad-value"]),
        ("scheduler.window={rule='list',steps=['x',99]}", ["wrong-type", "window"]),
        ("scheduler.window={rule='list',steps=['x',9999,5]}", ["wrong-type", "bad-value"]),
        ("scheduler.window={rule='subset',steps=['x','y'],size=3}", ["wrong-type", "wrong-type", "window"]),
        ("reward=[3,{name='bright'},{name='bright',weight='x'}]", ["not-an-array", "wrong-type", "labels"]),
        ("data={source=[3,{name='c'},{name='c'}]}", ["not-a-table", "missing-key", "missing-key", "sources"]),
        ("plugins=[3,'nobody']", ["wrong-type", *["plugin-missing"] * 4]),
    ],
)
def test_a_wrong_entry_of_an_array_hides_none_beside_it(tmp_path: Path, change: str, kinds: list[str]) -> None:
    assert sorted(one.kind for one in told(tmp_path, sets=[change])) == sorted(kinds)


OWN = """
[sampling]
steps = "8"
prompts = 4

[optimizer]
updates = 3
colour = 1

[lora]
rank = 0

[trainer]
beta = "x"

[scheduler]
name = "flow-sde"
window = { rule = "list", size = 2 }

[[reward]]
label = "two"

[track]
to = [3, "wanb"]
"""
"""Mistakes of a file that extends another; what it lacks may be there."""


@pytest.mark.parametrize(
    ("extends", "base", "kind"),
    [
        ('"absent.toml"', "", "unreadable-file"),
        ('"base.toml"', "[run", "toml-syntax"),
        ('"base.toml"', "extends = 'own.toml'", "extends-cycle"),
        ('"base.toml"', "extends = 'absent.toml'\n[eval]\nseed = 1", "unreadable-file"),
        ('"base.toml"', "secret = 1", "bad-extends"),
        ("3", "", "bad-extends"),
    ],
)
def test_what_cannot_be_extended_hides_no_mistake_and_is_missed_nowhere(
    tmp_path: Path, extends: str, base: str, kind: str
) -> None:
    own = lay(tmp_path, f"extends = {extends}{OWN}").rename(tmp_path / "own.toml")
    (tmp_path / "base.toml").write_text(base)
    sets = ["checkpoint.keep=x", "checkpoint.every=0", "reward[9].weight=1", "data.source[0].share=2", "model.size.x=1"]
    with pytest.raises(SpecError) as caught:
        load_spec(own, Registry(), sets, ["memory.cache", "lora.alpha"])
    found = sorted(problem.kind for problem in caught.value.problems)
    sound = ["bad-value", "missing-key", "no-such-entry", "tracker", "unknown-key", "updates", "window"]
    assert found == sorted([kind, *sound, *["wrong-type"] * 3])


def test_a_plugin_may_be_of_what_cannot_be_extended(tmp_path: Path) -> None:
    def told_of(text: str) -> set[str]:
        with pytest.raises(SpecError) as caught:
            load_spec(lay(tmp_path, f"extends = 'absent.toml'\n{text}\n[trainer]\nname = 'mine'\nx = 1\n"), Registry())
        return {problem.kind for problem in caught.value.problems}

    assert told_of("") == {"unreadable-file"}
    assert told_of("plugins = ['./toy.py']") == {"unreadable-file", "plugin-missing"}


def test_changes_that_do_not_fit_hide_nothing(tmp_path: Path) -> None:
    problems = told(tmp_path, ("epochs = 3", "epochs = 'x'"), sets=["reward[9].weight=1"], unsets=["nothing"])
    assert {problem.kind for problem in problems} == {"no-such-entry", "nothing-to-unset", "wrong-type"}


def test_of_two_tunings_the_one_that_was_written_last_is_pointed_at(tmp_path: Path) -> None:
    lay(tmp_path, edited(("[lora]\nrank = 4", "[full]")))
    top = tmp_path / "top.toml"
    top.write_text("extends = 'spec.toml'\n[lora]\nrank = 4\n")
    with pytest.raises(SpecError) as caught:
        load_spec(top, Registry())
    assert str(caught.value.problems[0].place) == f"{top}:2"


def test_the_keys_of_a_table_are_listed_once(tmp_path: Path) -> None:
    text = "\n".join(str(problem) for problem in told(tmp_path, ("rank = 4", "a_x = 1\nb_x = 2\nc_x = 3")))
    assert text.count("the keys of [lora] are") == 1


def test_very_many_mistakes_are_counted(tmp_path: Path) -> None:
    many = "\n".join(f"zzz{i} = {i}" for i in range(30_000))
    words = "words = [" + ", ".join(map(str, range(30_000))) + "]"
    problems = told(tmp_path, ("rank = 4", many), ("target = 0.25", words))
    assert len(problems) < 60
    assert any("29980 more keys of [lora] are unknown" in problem.what for problem in problems)


@pytest.mark.parametrize(
    ("table", "line", "said"),
    [
        ("[optimizer]", "learning_rate = 1", "here it is called [optimizer] lr"),
        ("[optimizer]", "max_grad_norm = 1", "here it is called [optimizer] clip_norm"),
        ("[optimizer]", "lr_warmup_steps = 1", "here it is called [optimizer] warmup"),
        ("[optimizer]", "gradient_accumulation_steps = 1", "see `flowfactory plan`"),
        ("[optimizer]", "batch_size = 1", "here it is called [optimizer] micro_batch"),
        ("[sampling]", "num_inference_steps = 1", "here it is called [sampling] steps"),
        ("[sampling]", "cfg_scale = 1", "here it is called [sampling] guidance"),
        ("[sampling]", "num_generations = 1", "here it is called [sampling] group"),
        ("[sampling]", "resolution = 1", "here it is called [sampling] size; a number, [height, width]"),
        ("[sampling]", "height = 1", "here it is called [sampling] size"),
        ("[sampling]", "negative_prompt = 1", "it is a column of the data"),
        ("[sampling]", "sampler = 1", "here it is called [scheduler] name"),
        ("[trainer]", "kl_coef = 1", "here it is called [trainer] kl_beta"),
        ("[trainer]", "clip_range = 1", "here it is called [trainer] clip_high"),
        ("[optimizer]", "grad_clip = 1", "here it is called [optimizer] clip_norm"),
        ("[run]", "torch_dtype = 1", "here it is called [run] precision"),
        ("[run]", "num_gpus = 1", "`flowfactory run SPEC --processes N`"),
        ("[run]", "push_to_hub = 1", "`hf upload` takes"),
        ("[lora]", "lora_dropout = 1", "rank, alpha and targets are all"),
        ("[sampling]", "flow_shift = 1", "the schedule of the checkpoint itself"),
        ("[run]", "output_dir = 1", "flowfactory run SPEC --runs FOLDER"),
        ("[run]", "Learning-Rate = 1", "here it is called [optimizer] lr"),
        ("[sampling]", "seed = 1", "did you mean [run] seed or [eval] seed?"),
        ("[sampling]", "rank = 1", "did you mean [lora] rank?"),
        ("[run]", "gradient_checkpointing = 1", "did you mean [memory] gradient_checkpointing?"),
        ("[lora]", "weight = 1", "did you mean [[reward]] weight?"),
    ],
)
def test_what_other_programs_call_a_key_is_known(tmp_path: Path, table: str, line: str, said: str) -> None:
    (problem,) = told(tmp_path, (f"\n{table}\n", f"\n{table}\n{line}\n"))
    assert problem.hint.startswith(said) or said in problem.hint


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("learning_rate = 1", "here it is called [optimizer] lr"),
        ("network = {}", "here it is called [lora]"),
        ("train = {}", "here it is called [run], [sampling] and [optimizer]"),
        ("clip_norm = 1", "did you mean [optimizer] clip_norm?"),
        ("sampler = {}", "here it is called [s"),
    ],
)
def test_so_is_a_table_and_a_key_outside_of_any(tmp_path: Path, line: str, said: str) -> None:
    (problem,) = told(tmp_path, ("plugins =", f"{line}\nplugins ="))
    assert problem.hint.startswith(said)


def test_every_alias_leads_to_something_that_exists(registry: Registry) -> None:
    from flowfactory.components.resolved import contributions
    from flowfactory.names import directory
    from flowfactory.spec.kinds import keys
    from flowfactory.spec.tables import COMPONENTS

    known = core = {f"[{table}] {name}" for table, cls in TABLES.items() for name in keys(cls)}
    offers, _ = contributions(registry)
    for table, kind in (*COMPONENTS.items(), ("[reward]", "rewards")):
        known = known | {f"[{table}] {name}" for offer in offers[kind] for name in keys(offer.provides.spec)}
        known = known | {f"[{table}] name", "[[reward]] weight"}
    for alias in aliases.aliases("key"):
        assert alias.here or alias.note
        assert not alias.here or alias.here in known
        table, _, own = alias.here.partition("] ")
        words = {word for said in alias.words.values() for word in said} - {own}
        assert not {f"{table}] {word}" for word in words} & core
    for alias in aliases.aliases("plugin"):
        assert alias.here in (*directory.names(alias.kind), *registry.names(alias.kind))
        everywhere = {word for words in alias.words.values() for word in words}
        assert not everywhere & {*directory.names(alias.kind), *registry.names(alias.kind)}
    assert len({alias.here for alias in aliases.aliases("key") if alias.here}) > 40


@pytest.mark.parametrize("value", ["{name=nft}", "[a,b]"])
def test_quotes_that_a_shell_took_are_asked_for(tmp_path: Path, value: str) -> None:
    address = "trainer" if value[0] == "{" else "lora.targets"
    (problem, *_) = told(tmp_path, sets=[f"{address}={value}"])
    assert problem.hint.startswith("quote it for the shell")
