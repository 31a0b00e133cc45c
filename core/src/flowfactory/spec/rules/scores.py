"""Rules of what is scored: rewards, the sources of the data, evaluations, and who is told."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence

from flowfactory.components.resolved import contributions
from flowfactory.contracts.specs import DifferentiableSpec, Needs
from flowfactory.data.sources import Data, DataSource
from flowfactory.errors import DONE, Problem, did_you_mean, listed
from flowfactory.spec.rules.rule import Rule, Where
from flowfactory.spec.tables import Eval, RewardEntry

TRACKERS: Mapping[str, tuple[str, ...]] = {
    **{name: (name,) for name in ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "trackio", "wandb")},
    "tensorboard": ("tensorboard", "tensorboardX"),
}
"""accelerate's own, which cannot be asked without importing torch, each with the packages of which it needs one."""

Rewards = tuple[RewardEntry, ...]
Sources = tuple[DataSource, ...] | None

# --- rewards -------------------------------------------------------------------------------------------------------


def _labels(where: Where, rewards: Rewards) -> Iterator[Problem]:
    seen = set[str]()
    return where.each(_label(where, entry, ("reward", i), seen) for i, entry in enumerate(rewards))


def _labels_of_evaluation(where: Where, rewards: Rewards) -> Iterator[Problem]:
    seen = set[str]()
    return where.each(_label(where, entry, ("eval", "reward", i), seen) for i, entry in enumerate(rewards))


def _label(where: Where, entry: RewardEntry, at: Sequence[str | int], seen: set[str]) -> Iterator[Problem]:
    label = entry.label
    if label in seen:
        key = "label" if where.root.at(*at, "label") else "name"
        what = f"two rewards have the label `{label}`, which names their metrics"
        yield Problem("labels", what, where(*at, key), "give one of them another `label`")
    seen.add(label)


def _rewards(where: Where, trainer: str, needs: Needs, rewards: Rewards) -> Iterator[Problem]:
    if rewards and needs.source != "rollouts":
        what = f"trainer `{trainer}` learns from the data, so there are no samples that [[reward]] could score"
        yield Problem("unscored", what, where("reward", 0, "name"), "leave it out; evaluations have [[eval.reward]]")
    if not rewards and (needs.scores or needs.gradient):
        yield Problem("no-reward", "there is nothing to train for: at least one [[reward]] is needed", where("reward"))


def _weights(where: Where, needs: Needs, rewards: Rewards) -> Iterator[Problem]:
    if (needs.scores or needs.gradient) and rewards and all(entry.weight == 0 for entry in rewards):
        what = "every [[reward]] has weight 0, so nothing would be learned"
        yield Problem("weights", what, where("reward", 0, "weight"))


def _gradients(where: Where, trainer: str, needs: Needs, rewards: Rewards) -> Iterator[Problem]:
    if needs.gradient:
        yield from where.each(_gradient(where, trainer, entry, i) for i, entry in enumerate(rewards))


def _gradient(where: Where, trainer: str, entry: RewardEntry, number: int) -> Iterator[Problem]:
    if entry.weight != 0 and not isinstance(entry.spec, DifferentiableSpec):
        offers = contributions(where.registry)[0]["rewards"]
        able = {c.provides.name for c in offers if issubclass(c.provides.spec, DifferentiableSpec)}
        what = f"trainer `{trainer}` follows the gradient of rewards, and reward `{entry.name}` has none"
        hint = f"set its weight to 0, or take one that has (there is: {listed(sorted(able))})"
        yield Problem("no-gradient", what, where("reward", number, "name"), hint)


# --- sources of the data -------------------------------------------------------------------------------------------


def _no_data(where: Where, sources: Sources, prompts: str | None) -> Iterator[Problem]:
    if sources is None and prompts is None:
        what = "[data] lacks `prompts` (training prompts), or [[data.source]] where there are several sources"
        yield Problem("missing-key", what, where("data"))


def _both_ways(where: Where, sources: Sources) -> Iterator[Problem]:
    for name in ("prompts", "eval_prompts"):
        if sources is not None and where.root.at("data", name) is not None:
            what = f"[data] has [[data.source]] with their own `{name}`, and also `{name}`"
            yield Problem("sources", what, where("data", name), "make it one of the sources, or `--unset` it")


def _source_names(where: Where, sources: Sources) -> Iterator[Problem]:
    seen = set[str]()
    return where.each(_source_name(where, source, i, seen) for i, source in enumerate(sources or ()))


def _source_name(where: Where, source: DataSource, number: int, seen: set[str]) -> Iterator[Problem]:
    if source.name in seen:
        what = f"two sources have the name `{source.name}`, which rewards and metrics use"
        yield Problem("sources", what, where("data", "source", number, "name"), "give one of them another name")
    seen.add(source.name)


def _named(where: Where, sources: Sources, rewards: Rewards) -> Iterator[Problem]:
    return where.each(_names(where, sources, entry, ("reward", i)) for i, entry in enumerate(rewards))


def _named_in_evaluation(where: Where, sources: Sources, rewards: Rewards) -> Iterator[Problem]:
    return where.each(_names(where, sources, entry, ("eval", "reward", i)) for i, entry in enumerate(rewards))


def _names(where: Where, sources: Sources, entry: RewardEntry, at: Sequence[str | int]) -> Iterator[Problem]:
    known = [source.name for source in sources or ()]
    names = enumerate(entry.sources or ())
    yield from where.each(_name(where, name, known, entry, (*at, "sources", j)) for j, name in names)


def _name(
    where: Where, name: str, known: Sequence[str], entry: RewardEntry, at: Sequence[str | int]
) -> Iterator[Problem]:
    if name not in known:
        what = f"reward `{entry.label}`: there is no source `{name}` (there is: {listed(known)})"
        hint = did_you_mean(name, known) or "sources are named in [[data.source]]"
        yield Problem("no-such-source", what, where(*at), hint)


def _unevaluated(where: Where, data: Data, rewards: Rewards, table: Eval) -> Iterator[Problem]:
    evaluated = table.every > 0
    yield from _left_out(where, data, rewards, ("reward",), evaluated and not table.rewards)
    yield from _left_out(where, data, table.rewards, ("eval", "reward"), evaluated)


def _left_out(where: Where, data: Data, rewards: Rewards, at: Sequence[str], evaluated: bool) -> Iterator[Problem]:
    held_out = data.held_out if evaluated else ()
    if held_out:
        yield from where.each(_passed_over(where, held_out, entry, (*at, i)) for i, entry in enumerate(rewards))


def _passed_over(
    where: Where, held_out: Sequence[str], entry: RewardEntry, at: Sequence[str | int]
) -> Iterator[Problem]:
    if not any(map(entry.applies_to, held_out)):
        what = f"reward `{entry.label}` scores no source that has `eval_prompts`, so evaluations leave it out"
        yield Problem("not-evaluated", what, where(*at, "sources"), code=DONE)


def _unscored(where: Where, needs: Needs, sources: Sources, rewards: Rewards) -> Iterator[Problem]:
    """Sources whose samples no reward that counts scores."""
    counting = [entry for entry in rewards if entry.weight != 0] if needs.scores else []
    if counting:
        yield from where.each(_not_scored(where, counting, source, i) for i, source in enumerate(sources or ()))


def _not_scored(where: Where, counting: Sequence[RewardEntry], source: DataSource, number: int) -> Iterator[Problem]:
    if not any(entry.applies_to(source.name) for entry in counting):
        what = f"no [[reward]] whose weight is not 0 scores the samples of source `{source.name}`"
        hint = "name it in the `sources` of one, or leave the source out"
        at = where("data", "source", number, "name")
        yield Problem("unscored-source", f"{what}: nothing is learned from them", at, hint)


# --- evaluations, and who is told ----------------------------------------------------------------------------------


def _evaluation(where: Where, sources: Sources, held_out: str | None, every: int) -> Iterator[Problem]:
    """Without held-out prompts nothing is evaluated; asking for it all the same is a mistake, not asking is not."""
    asked = where.root.at("eval") is not None and every > 0
    files = [held_out] if sources is None else [source.eval_prompts for source in sources]
    if asked and not any(files) and (sources or where.root.at("data", "prompts") is not None):
        what = f"[eval] asks for evaluations (every = {every}), but [data] has no `eval_prompts`"
        yield Problem("no-eval-prompts", what, where("eval", "every"), "add them, or set [eval] every = 0")


def _best(where: Where, best: str, data: Data, table: Eval, rewards: Rewards) -> Iterator[Problem]:
    """A metric to judge by must be one that evaluations have."""
    if best in ("score", "none"):
        return
    held_out = data.held_out if table.every > 0 else ()
    asked = [entry for entry in table.rewards or rewards if any(map(entry.applies_to, held_out))]
    known = [f"eval/{entry.label}/mean" for entry in asked]
    if best not in known:
        what = f"[checkpoint] best: no evaluation has `{best}` (there is: {listed(known)})"
        yield Problem("best", what, where("checkpoint", "best"), did_you_mean(best, known))


def _trackers(where: Where, names: tuple[str, ...]) -> Iterator[Problem]:
    """A plugin that brings trackers knows their names when the run starts, not before."""
    if not where.registry.brings_trackers():
        yield from where.each(_tracker(where, name, i) for i, name in enumerate(names))


def _tracker(where: Where, name: str, number: int) -> Iterator[Problem]:
    needed, place = TRACKERS.get(name, ()), where("track", "to", number)
    if needed and not any(importlib.util.find_spec(package) for package in needed):
        what = f"tracker `{name}` needs the package {needed[0].replace('_', '-')}, which is not installed"
        yield Problem("tracker", what, place, f"try: pip install {needed[0].replace('_', '-')}")
    elif not needed:
        hint = did_you_mean(name, TRACKERS) or "is the plugin that brings it listed in `plugins`?"
        what = f"there is no tracker `{name}` (there is: {listed(sorted(TRACKERS))})"
        yield Problem("tracker", what, place, hint)


RULES: tuple[Rule, ...] = (
    (("rewards",), _labels),
    (("eval.rewards",), _labels_of_evaluation),
    (("trainer.name", "trainer.spec.needs", "rewards"), _rewards),
    (("trainer.spec.needs", "rewards"), _weights),
    (("trainer.name", "trainer.spec.needs", "rewards"), _gradients),
    (("data.source", "data.prompts"), _no_data),
    (("data.source",), _both_ways),
    (("data.source",), _source_names),
    (("data.source", "rewards"), _named),
    (("data.source", "eval.rewards"), _named_in_evaluation),
    (("data", "rewards", "eval"), _unevaluated),
    (("trainer.spec.needs", "data.source", "rewards"), _unscored),
    (("data.source", "data.eval_prompts", "eval.every"), _evaluation),
    (("checkpoint.best", "data", "eval", "rewards"), _best),
    (("track.to",), _trackers),
)
