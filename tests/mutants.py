"""Small faults in the plugins that the templates make, each with the check that must find it.

A mutant is a template baked anew, with one replacement in one of its files.
"""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
from flowfactory.cli.baking import bake
from flowfactory.testing import Case, Kit


@attrs.frozen
class Mutant:
    """A fault: in a `kind`'s `file`, `old` becomes `new`; `check` finds it, and its message has `words` in it."""

    name: str
    kind: str
    file: str
    old: str
    new: str
    check: str
    words: str = ""


HOOKS, PROJECT = "__init__.py", "pyproject.toml"
SCORE = "return [1 - float((average - wanted).abs().mean()) for average in averages]"
SCORES = "scores = [1 - float((average - wanted).abs().mean()) for average in averages]\n        "

EVERY_ENTRY = (
    Mutant(
        "torch imported at L1", "reward", HOOKS, "import attrs\n", "import attrs\nimport torch\n",
        "hook_module_is_light", "imports torch",
    ),
    Mutant(
        "slow to import", "reward", HOOKS, "SUMMARY =", "SLOW = sum(i * i for i in range(8_000_000))\nSUMMARY =",
        "hook_module_is_quick", "of processor time",
    ),
    Mutant(
        "misspelt hook", "reward", HOOKS, "def flowfactory_rewards", "def flowfactory_rewadrs",
        "names_agree", "did you mean `flowfactory_rewards`?",
    ),
    Mutant(
        "another name than its entry point's", "scheduler", HOOKS, 'Provides("', 'Provides("x-',
        "names_agree", "declares the entry point",
    ),
    Mutant(
        "no summary", "trainer", HOOKS, "TARGET, SUMMARY", "TARGET, ''", "summary_is_a_line", "not one line",
    ),
    Mutant(
        "a spec that can be changed", "reward", HOOKS, "@attrs.frozen(", "@attrs.define(",
        "spec_is_frozen", "can be changed",
    ),
    Mutant(
        "keys by position", "reward", HOOKS, "frozen(kw_only=True)", "frozen", "spec_is_keyword_only", "by position",
    ),
    Mutant(
        "a key without words", "scheduler", HOOKS, '"Noise per root of sigma, at pure noise."', '""',
        "spec_is_documented", "without words: eta",
    ),
    Mutant(
        "a default out of its bounds", "scheduler", HOOKS, "default=0.5, gt=0", "default=0.5, gt=1",
        "spec_round_trips", "greater than 1",
    ),
    Mutant(
        "one version of flowfactory only", "reward", PROJECT, "flowfactory>=0.1,<1", "flowfactory==0.1.0",
        "requirement_is_a_range", "no other plugin",
    ),
    Mutant(
        "a method under another name", "reward", "reward.py", "def score(self", "def scores(self",
        "target_honours_its_contract", "lacks score",
    ),
    Mutant(
        "a method with another signature", "scheduler", "scheduler.py", "ceiling: float) ->", "top: float) ->",
        "target_honours_its_contract", "its contract says",
    ),
    Mutant(
        "a tiny checkpoint from the hub", "adapter", "adapter.py",
        "        stable_diffusion_3()",
        '        __import__("socket").create_connection(("huggingface.co", 443))\n        stable_diffusion_3()',
        "tiny_is_offline", "huggingface.co",
    ),
)  # fmt: skip
REWARDS = (
    Mutant(
        "a score that depends on the batch", "reward", "reward.py", SCORE,
        f"{SCORES}return [score - sum(scores) / len(scores) for score in scores] if scores else []",
        "batch_independence", "one at a time",
    ),
    Mutant(
        "a score that depends on the place in the batch", "reward", "reward.py", SCORE,
        f"{SCORES}return [score + 0.1 * i for i, score in enumerate(scores)]",
        "permutation", "in another order",
    ),
    Mutant(
        "scores out of order", "reward", "reward.py", SCORE, f"{SCORES}return sorted(scores)",
        "permutation", "in another order",
    ),
    Mutant(
        "reads what it does not declare", "reward", "reward.py", SCORE,
        f"{SCORES}return [x + len(s.row.negative_prompt or '') for x, s in zip(scores, samples)]",
        "reads_what_it_declares", "with another negative_prompt",
    ),
    Mutant(
        "changes the images", "reward", "reward.py", "sample.media.mean((-2, -1))",
        "sample.media.mul_(0.5).mean((-2, -1))",
        "inputs_stay", "changes the media",
    ),
    Mutant(
        "random scores", "reward", "reward.py", SCORE,
        f"{SCORES}return [score + float(torch.rand(())) for score in scores]",
        "repeatable", "asked twice",
    ),
    Mutant(
        "seeds everybody's random numbers", "reward", "reward.py", "wanted = torch",
        "torch.manual_seed(0)\n        wanted = torch",
        "no_side_effects", "torch's random numbers",
    ),
    Mutant(
        "a score that is no number", "reward", "reward.py", SCORE, f"{SCORES}return [float('nan')] * len(scores)",
        "one_score_each", "not a finite number",
    ),
    Mutant(
        "one score too few", "reward", "reward.py", SCORE, f"{SCORES}return scores[1:]",
        "one_score_each", "returned 3 scores for 4 samples",
    ),
    Mutant(
        "fails on nothing", "reward", "reward.py", "wanted = torch", "top = samples[0]\n        wanted = torch",
        "empty_input", "IndexError",
    ),
)  # fmt: skip
SCHEDULERS = (
    Mutant(
        "wrong sign of the drift", "scheduler", "scheduler.py", "- g**2 * D", "+ g**2 * D",
        "keeps_the_marginals", "not 0.5 and 0.4",
    ),
    Mutant(
        "noise without the root", "scheduler", "scheduler.py", "g * torch.sqrt(D)", "3 * g * D",
        "keeps_the_marginals", "not 0.5 and 0.4",
    ),
    Mutant(
        "drift in the wrong direction", "scheduler", "scheduler.py", "x - D * v", "x + D * v",
        "eta_to_zero_is_euler", "is not Euler's",
    ),
    Mutant(
        "a variance for a standard deviation", "scheduler", "scheduler.py", "g * torch.sqrt(D))",
        "g * torch.sqrt(D))\n\n"
        "    def logprob(self, v, x, x_next, sigma, sigma_next, ceiling):\n"
        "        at = self.moments_of(v, x, sigma, sigma_next, ceiling)\n"
        "        return (-((x_next - at.mean) ** 2) / (2 * at.std)).flatten(1).mean(1)",
        "density_is_what_it_claims", "log-probability of step 0 is wrong",
    ),
    Mutant(
        "no gradient through the velocity", "scheduler", "scheduler.py", "D * v", "D * v.detach()",
        "gradient_reaches_the_velocity", "is not how its log-probability changes",
    ),
    Mutant(
        "remembers the step before", "scheduler", "scheduler.py", "        noise = x +",
        "        self.calls = vars(self).get('calls', 0) + 1\n        x = x + 1e-3 * self.calls\n        noise = x +",
        "steps_are_drawn_from_it", "step",
    ),
    Mutant(
        "one noise level for the batch", "scheduler", "scheduler.py", "self.spec.eta * sigma",
        "self.spec.eta * sigma[:1]",
        "samples_do_not_mix", "depends on its batch",
    ),
    Mutant(
        "more calls than it says", "scheduler", "scheduler.py", "    def moments(",
        "    def look(self, field, x, sigma, sigma_next):\n"
        "        return (field(x, sigma) + field(x, sigma)) / 2\n\n    def moments(",
        "calls_are_as_said", "its spec says 10 calls of the last 10 steps, and it makes 20",
    ),
    Mutant(
        "no noise at the end", "scheduler", "scheduler.py", "self.spec.eta * sigma",
        "self.spec.eta * (sigma - 0.5).clamp(min=0)",
        "moments_are_sound", "standard deviations",
    ),
)  # fmt: skip
TRAINERS = (
    Mutant(
        "wrong sign", "trainer", "trainer.py", "-(batch.advantages * ratio)", "(batch.advantages * ratio)",
        "advantage_raises_likelihood", "less likely",
    ),
    Mutant(
        "wrong sign, not learning", "trainer", "trainer.py", "-(batch.advantages * ratio)",
        "(batch.advantages * ratio)",
        "learns", "squared distances",
    ),
    Mutant(
        "lost gradient", "trainer", "trainer.py", "((v.float() -", "((v.detach().float() -",
        "every_part_carries_a_gradient", "no gradient comes from kl",
    ),
    Mutant(
        "everybody's random numbers", "trainer", "trainer.py",
        "            return policy.velocity(batch.rollout.latents[step],",
        "            x = batch.rollout.latents[step]\n"
        "            return policy.velocity(x + 0.1 * __import__('torch').randn_like(x),",
        "same_seed_same_terms", "`kl` is",
    ),
    Mutant(
        "a sum for a mean", "trainer", "trainer.py", "* ratio).mean()", "* ratio).sum()",
        "microbatch_invariance", "differs",
    ),
    Mutant(
        "advantages centred in the micro-batch", "trainer", "trainer.py", "-(batch.advantages * ratio)",
        "-((batch.advantages / batch.advantages.std()) * ratio)",
        "microbatch_invariance", "differs",
    ),
    Mutant(
        "advantages of other samples", "trainer", "trainer.py", "batch.advantages * ratio",
        "batch.advantages.flip(0) * ratio",
        "advantage_raises_likelihood", "less likely",
    ),
    Mutant(
        "a ratio that does not begin at 1", "trainer", "trainer.py", "(logprob - batch.rollout",
        "(logprob + 1e-3 - batch.rollout",
        "first_ratio_is_one", "the first ratio is",
    ),
    Mutant(
        "metrics that keep the graph", "trainer", "trainer.py", '"ratio": ratio.detach()', '"ratio": ratio',
        "parts_are_numbers", "detach it",
    ),
    Mutant(
        "other weights left active", "trainer", "trainer.py", '        with policy.using("reference"):\n',
        '        self.left = policy.using("reference")\n        self.left.__enter__()\n        if True:\n',
        "terms_leave_no_trace", "active",
    ),
    Mutant(
        "the best are the worst", "trainer", "trainer.py", "    def terms(",
        "    def advantages(self, scores, groups):\n        return -super().advantages(scores, groups)\n\n"
        "    def terms(",
        "better_scores_better_advantages", "have advantages",
    ),
    Mutant(
        "equal scores that differ", "trainer", "trainer.py", "    def terms(",
        "    def advantages(self, scores, groups):\n        found = super().advantages(scores, groups)\n"
        "        return found + (groups + 1).cumsum(0) * 1e-3\n\n    def terms(",
        "equal_scores_have_equal_advantages", "have advantages",
    ),
    Mutant(
        "scores that do not count", "trainer", "trainer.py", "    def terms(",
        "    def advantages(self, scores, groups):\n        return (groups * 0 + 1).double()\n\n"
        "    def terms(",
        "better_scores_better_advantages", "all alike",
    ),
    Mutant(
        "missing scores that count", "trainer", "trainer.py", "    def terms(",
        "    def advantages(self, scores, groups):\n"
        "        (values,) = scores.values.values()\n"
        "        return super().advantages(scores, groups).masked_fill(values.isnan(), -1.0)\n\n"
        "    def terms(",
        "missing_scores_take_no_part", "without a score",
    ),
    Mutant(
        "scores of media that nobody scores", "trainer", HOOKS, "Needs(", 'Needs(source="media", ',
        "needs_are_sound", "which nobody scores",
    ),
    Mutant(
        "trajectories of media", "trainer", HOOKS, "Needs(", 'Needs(source="media", scores=False, ',
        "needs_are_sound", "have no trajectories",
    ),
    Mutant(
        "sampling with weights it does not keep", "trainer", HOOKS, "Needs(", 'Needs(rollout="sampler", ',
        "needs_are_sound", "which are not among its `sets`",
    ),
    Mutant(
        "needs it does not state", "trainer", HOOKS, ", reference=self.kl_beta > 0", "",
        "terms_leave_no_trace", "no weight set 'reference'",
    ),
)  # fmt: skip
ADAPTERS = (
    Mutant(
        "guidance the wrong way", "adapter", "adapter.py", "guidance * (positive - negative)",
        "guidance * (negative - positive)",
        "velocity_equals_the_tap", "is not the tap's",
    ),
    Mutant(
        "noise levels not scaled", "adapter", "adapter.py", "1000 * sigma", "999 * sigma",
        "velocity_equals_the_tap", "is not the tap's",
    ),
    Mutant(
        "no gradient", "adapter", "adapter.py", "    def velocity(", "    @torch.no_grad()\n    def velocity(",
        "gradients_reach_every_lora", "have no gradient",
    ),
    Mutant(
        "one noise level for the batch", "adapter", "adapter.py", "sigma.to(x.device)",
        "sigma[:1].expand(len(x)).to(x.device)",
        "velocities_are_each_samples_own", "depends on its batch",
    ),
    Mutant(
        "calls that depend on the noise level", "adapter", "adapter.py", "    @classmethod",
        "    def velocity(self, x, sigma, *rest):\n        for _ in range(2 if sigma[0] > 0.8 else 1):\n"
        "            v = super().velocity(x, sigma, *rest)\n        return v\n\n    @classmethod",
        "calls_are_as_promised", "differently for single samples",
    ),
    Mutant(
        "images out of range", "adapter", "adapter.py", "    @classmethod",
        "    def decode(self, x, size):\n        return 2 * super().decode(x, size)\n\n    @classmethod",
        "media_are_in_range", "media range from",
    ),
    Mutant(
        "a schedule of its own", "adapter", "adapter.py", "    @classmethod",
        "    def sigmas(self, steps, size):\n        return torch.linspace(1, 0, steps + 1)\n\n    @classmethod",
        "schedule_equals_the_tap", "not the pipeline's",
    ),
)  # fmt: skip
MUTANTS = (*EVERY_ENTRY, *REWARDS, *SCHEDULERS, *TRAINERS, *ADAPTERS)


@attrs.frozen
class Fault:
    """A fault of an installed trainer or reward: in the module of its class `old` becomes `new`; `check` finds it."""

    name: str
    entry: str
    old: str
    new: str
    check: str
    words: str
    keys: Mapping[str, Any] = attrs.field(factory=dict, hash=False)


TAUGHT = {"opd": {"teachers": [{"from": "some/teacher"}]}}
LOSS = "torch.where(term.pairs.differ, -logsigmoid(chosen - rejected), 0.0).mean()"
FAULTS = (
    *(
        Fault(
            "shuffled pairs", entry, "torch.cat([pairs.chosen, pairs.rejected])",
            "torch.cat([pairs.chosen, pairs.rejected.roll(1)])",
            "microbatch_invariance", "differs",
        )
        for entry in ("dpo", "diffusion-dpo")
    ),
    *(
        Fault(
            "the rejected preferred", entry, "int(ranked[0]), int(ranked[-1])", "int(ranked[-1]), int(ranked[0])",
            "groups_prefer_their_best", "it prefers the worst",
        )
        for entry in ("dpo", "diffusion-dpo")
    ),
    Fault(
        "divided groups", "dpo", "slots, A = groups.tolist()", "slots, A = [i // 2 for i in range(len(groups))]",
        "microbatch_invariance", "differs",
    ),
    Fault(
        "a mean over samples", "dpo", LOSS, LOSS.replace(".mean()", ".sum() / len(batch.advantages)"),
        "microbatch_invariance", "differs",
    ),
    Fault(
        "a mean over what has a pair", "dpo", LOSS, "-logsigmoid(chosen - rejected)[term.pairs.differ].mean()",
        "groups_of_one_are_no_fault", "its loss is",
    ),
    Fault(
        "noise of one's own", "dpo", "torch.cat([noise, noise])", "torch.cat([noise, noise.flip(0)])",
        "groups_share_their_draws", "of its samples have a noise or a level of their own",
    ),
    Fault(
        "a level of one's own", "diffusion-dpo", "torch.cat([sigma, sigma])", "torch.cat([sigma, sigma.flip(0)])",
        "groups_share_their_draws", "of its samples have a noise or a level of their own",
    ),
    Fault(
        "only the rejected are pushed", "diffusion-dpo", "(found - term.reference)",
        "(found - term.reference) * torch.tensor([[-1.0], [1.0]])",
        "learns", "squared distances",
    ),
    Fault(
        "the worse preferred", "dgpo", "weight * A * torch", "weight * -A * torch",
        "groups_prefer_their_best", "it prefers the worst",
    ),
    Fault(
        "a weight over the micro-batch", "dgpo", "averaging(groups) @ (A", "averaging(groups * 0) @ (A",
        "microbatch_invariance", "differs",
    ),
    Fault(
        "a mean over samples", "dgpo", "now, d), groups)", "now, d), torch.arange(len(d)))",
        "microbatch_invariance", "differs",
    ),
    Fault(
        "noise of one's own", "dgpo", "Term(*at,", "Term(at[0], at[1].cumsum(0),",
        "groups_share_their_draws", "of its samples have a noise or a level of their own",
    ),
    Fault(
        "a level of one's own", "dgpo", "Term(*at,", "Term(at[0].cumsum(0) / 9, at[1],",
        "groups_share_their_draws", "of its samples have a noise or a level of their own",
    ),
    Fault(
        "the worse preferred", "crd", "(implicit - given) ** 2", "(implicit + given) ** 2",
        "groups_prefer_their_best", "it prefers the worst",
    ),
    Fault(
        "centred over the micro-batch", "crd", "[averaging(groups)]", "[averaging(groups * 0)]",
        "microbatch_invariance", "differs",
    ),
    Fault(
        "a mean over samples", "crd", "(R, q, mean, spec), groups)", "(R, q, mean, spec), torch.arange(len(q)))",
        "microbatch_invariance", "differs",
    ),
    Fault(
        "not learning", "crd", "u, q = term.noise - x0,", "u, q = term.noise + x0,",
        "learns", "squared distances",
    ),
    Fault(
        "away from the data", "sft", "(weight * error).mean()", "-(weight * error).mean()",
        "targets_get_likelier", "less likely",
    ),
    Fault("not learning", "sft", "term.noise - x0)", "term.noise + x0)", "learns", "squared distances"),
    *(
        Fault(
            "away from the teacher", entry, "pulled(x, ", "pulled(-x, ",
            "students_are_brought_back", "squared distances from the reference",
        )
        for entry in ("dmd", "tdm")
    ),
    Fault(
        "a fake network that learns nothing", "dmd", "per_sample_mean((v - (term.noise - x)) ** 2)",
        "per_sample_mean((v.detach() - (term.noise - x)) ** 2)",
        "each_role_trains_its_own_weights", "in the turn of 'fake' its loss has no gradient",
    ),
    Fault(
        "a fake network asked twice", "dmd", "        error = per_sample",
        "        v = (v + policy.velocity(term.noise, term.level, batch.conditions)) / 2\n        error = per_sample",
        "passes_are_as_said", "its spec says (8, 8) velocities without and with a gradient in the turn of 'fake'",
    ),
    Fault(
        "other weights with a gradient", "dmd", "        teacher, fake = judged(",
        "        with policy.using('fake'):\n            policy.velocity(x, term.level, batch.conditions)\n"
        "        teacher, fake = judged(",
        "each_role_trains_its_own_weights", "in the turn of 'current' it asks ['fake'] with gradients",
    ),
    Fault(
        "a sum for a mean", "tdm", "(weight * error).mean()", "(weight * error).sum()",
        "microbatch_invariance", "differs",
    ),
    Fault(
        "a mean over elements only", "dmd", "gradient / gradient.numel()", "gradient / gradient[0].numel()",
        "microbatch_invariance", "differs",
    ),
    Fault(
        "away from the reward", "draft", "-reward.mean()", "reward.mean()", "learns", "squared distances",
    ),
    Fault(
        "a step too many", "draft", "- 1).start]", "- 1).start - 1]",
        "gradients_go_as_far_as_said", "its needs say 1 of 6 steps, and it asks for 2",
    ),
    Fault(
        "a reward with no way back", "draft", "policy.decode(sampled(policy, batch, term))",
        "policy.decode(sampled(policy, batch, term)).detach()",
        "every_part_carries_a_gradient", "no gradient comes from reward",
    ),
    Fault(
        "a sum over samples", "refl", "lacking.mean()}", "lacking.sum()}", "microbatch_invariance", "differs",
    ),
    Fault(
        "data on the wrong side", "refl", "term.x - like", "term.x + like", "learns", "squared distances",
    ),
    Fault(
        "pixels rounded to bytes", "clip", "self.spec, exact=False", "self.spec",
        "value_has_a_gradient", "values have no gradient",
    ),
    Fault(
        "half the gradient", "clip", "cosines(list(media)", "cosines(list((media + media.detach()) / 2)",
        "value_has_a_gradient", "its slope says",
    ),
    Fault(
        "another's media", "clip", "cosines(list(media)", "cosines(list(media.roll(1, 0))",
        "value_has_a_gradient", "of sample 0",
    ),
    Fault(
        "a value that is not the score", "pickscore", "cosines / self.spec.divide", "cosines.abs() * 2",
        "value_agrees_with_score", "off scores",
    ),
    Fault(
        "no gradient where its spec says so", "clip", "class Similarity(DifferentiableReward)",
        "class Similarity(*DifferentiableReward.__bases__)",
        "differentiable_by_contract", "it is not one, and its spec says that it is",
    ),
    Fault(
        "the advantage of the step before", "stepgrpo", "        return clipped_loss(policy, batch",
        "        from attrs import evolve\n        batch = evolve(batch, advantages=batch.advantages.roll(1, -1))\n"
        "        return clipped_loss(policy, batch",
        "steps_have_their_own_advantages", "moves the weights elsewhere",
    ),
    Fault(
        "one advantage for all steps", "stepgrpo", "        return clipped_loss(policy, batch",
        "        from attrs import evolve\n        batch = evolve(batch, advantages=batch.advantages.mean(1))\n"
        "        return clipped_loss(policy, batch",
        "steps_have_their_own_advantages", "moves the weights elsewhere",
    ),
    Fault(
        "losses for gains", "stepgrpo", "gains = looks.diff", "gains = -looks.diff",
        "better_scores_better_advantages", "have advantages",
    ),
    Fault(
        "the worse preferred", "tempflow", "found[own] = scores", "found[own] = -scores",
        "better_scores_better_advantages", "have advantages",
    ),
    Fault(
        "away from the reward", "tempflow", "found[own] = scores", "found[own] = -scores",
        "learns", "squared distances",
    ),
    Fault(
        "the worse preferred", "branchgrpo", "total([weights[label] * column", "total([-weights[label] * column",
        "better_scores_better_advantages", "have advantages",
    ),
    Fault(
        "the bad preferred", "dppo", "dropped, 0.0, -advantages", "dropped, 0.0, advantages",
        "advantage_raises_likelihood", "less likely",
    ),
    Fault(
        "a ratio centred in the micro-batch", "dppo", "kept = torch", "kept = log_ratio - log_ratio.mean() + torch",
        "microbatch_invariance", "differs",
    ),
    Fault(
        "a teacher that is the student", "opd", "policy.using(teacher.name)", 'policy.using("current")',
        "teachers_are_approached", "squared distances from 'teacher'", TAUGHT,
    ),
    Fault(
        "a teacher that moves", "opd", '        return Loss(parts, {"gap": gap})',
        '        policy.move("teacher", 0.5)\n        return Loss(parts, {"gap": gap})',
        "teachers_take_no_gradient", "no weight set 'teacher' can move", TAUGHT,
    ),
    Fault(
        "a teacher with gradients", "opd", "            own = v[lesson.pupils]",
        "            own = v[lesson.pupils]\n            "
        "lesson, = self._ask(policy, batch, self.spec.teachers[0], [term.step])",
        "teachers_take_no_gradient", "it asks ['teacher'] with gradients", TAUGHT,
    ),
    Fault(
        "away from the teacher", "opd", "distance.sum() / len(v)", "-distance.sum() / len(v)",
        "teachers_are_approached", "squared distances from 'teacher'", TAUGHT,
    ),
    Fault(
        "a mean over so many", "opd", "distance.sum() / len(v)", "distance.sum() / 8",
        "microbatch_invariance", "differs", TAUGHT,
    ),
)  # fmt: skip


def faulty(fault: Fault) -> Case:
    """The check that must find a fault, on the class that has it."""
    (case,) = (case for case in Kit(fault.entry, fault.keys).cases if case.check.__name__ == fault.check)
    sound = case.subject.target
    text = Path(inspect.getfile(sound)).read_text()
    assert text.count(fault.old) == 1, f"{fault.name}: {fault.old!r} occurs {text.count(fault.old)} times"
    module = ModuleType(sound.__module__)
    exec(compile(text.replace(fault.old, fault.new), sound.__module__, "exec"), vars(module))
    vars(case.subject)["target"] = vars(module)[sound.__name__]
    return case


def install(folder: Path, kind: str, name: str, mutant: Mutant | None = None) -> str:
    """Bake a plugin, make the fault if there is one, and lay it out as an installed one; returns its distribution."""
    baked = bake(kind, name, {}, folder / "baked")
    (source,) = (baked / "src").iterdir()
    if mutant is not None:
        file = baked / PROJECT if mutant.file == PROJECT else source / mutant.file
        text = file.read_text()
        assert text.count(mutant.old) == 1, f"{mutant.name}: {mutant.old!r} occurs {text.count(mutant.old)} times"
        file.write_text(text.replace(mutant.old, mutant.new))
    project = tomllib.loads((baked / PROJECT).read_text())["project"]
    site = folder / "site"
    info = site / f"{source.name}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    source.rename(site / source.name)
    required = "".join(f"Requires-Dist: {text}\n" for text in project["dependencies"])
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1.0\n{required}")
    groups = project["entry-points"].items()
    lines = [f"[{group}]\n" + "".join(f"{n} = {module}\n" for n, module in points.items()) for group, points in groups]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return str(project["name"])
