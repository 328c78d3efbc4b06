"""How published weights travel from the learner's ranks to the rollout engines."""
