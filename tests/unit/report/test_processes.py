"""The report's table of processes."""

from ral_system.report.processes import processes


def test_idle_shares_and_memory_are_side_by_side() -> None:
    found = processes(
        {
            "idle_share": {"learner_0": 0.42, "rollout_0": 0.6},
            "peak_gib": {"controller": {"judge": 0.5}, "learner_0": {"score": 1.25, "update": 41.234}},
        }
    )
    assert "<tr><td>learner 0</td><td>42%</td><td>update 41.2 GiB, score 1.25 GiB</td></tr>" in found
    assert "<tr><td>controller</td><td></td><td>judge 0.5 GiB</td></tr>" in found
    assert "<tr><td>rollout 0</td><td>60%</td><td></td></tr>" in found


def test_a_run_that_has_not_ended_has_no_table() -> None:
    assert processes({}) == processes({"idle_share": None, "peak_gib": None}) == ""
