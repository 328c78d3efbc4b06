"""The comparison of engines and learner at the start of a session: before sft trains, or rl makes a whole batch."""

from __future__ import annotations

from contextlib import closing
from math import ceil

from ral_system.controller.stage import StageContext
from ral_system.training.plan import plan_updates
from ral_system.types import Sample, Sampling

_TOKENS = 32
"""Longest answer that is compared. An engine that computes another policy shows it at the first token."""


def check_agreement(context: StageContext, version: int, temperature: float) -> None:
    """Compare log-probs of a few sampled answers in engines and learner, and print the largest difference.

    The current weights are published as `version`; `temperature` is the one that the stage's learner scores at. Every
    engine answers, and every learner rank scores. Raises LogProbError beyond `rollout.log_prob_gate`. The stage ends as
    without the check: a response's randomness is a function of prompt, index and seed, and the stage publishes weights
    before it generates, after which engines keep nothing of earlier prompts.
    """
    config, roles = context.config, context.roles
    with context.timer.phase("sync"):
        context.residency.publish(version)
    context.residency.generate()
    with context.timer.phase("check"):
        answers = max(config.rollout.workers, roles.learner.shards)
        prompts = {prompt.id: prompt for prompt in context.prompts.held_out(answers)}
        sampling = Sampling(
            completions=ceil(answers / len(prompts)),
            temperature=temperature,
            max_new_tokens=min(_TOKENS, config.rollout.max_new_tokens),
            seed=config.seed,
        )
        with closing(roles.generator.generate([*prompts.values()], sampling)) as completions:
            samples = [Sample.of(prompts[made.prompt_id], made) for made in completions]
    context.residency.train()
    with context.timer.phase("check"):
        samples.sort(key=lambda sample: (sample.prompt.id, sample.index))  # they came as they were finished
        plan = plan_updates(samples, updates=1, shards=roles.learner.shards, max_tokens=config.learner.pass_tokens)
        largest = roles.learner.check_log_probs(plan)
    context.progress.say(
        f"engines and learner agree: largest log-prob difference {largest:.1g} over {plan.updates[0].counts.tokens} "
        "tokens"
    )
