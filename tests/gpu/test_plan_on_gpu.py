"""What passes hold on a GPU: as much as is planned without one."""

from pathlib import Path

import pytest
import torch

from ral_system.config.commands import PlanCommandConfig
from ral_system.planning.passes import OutlinedPolicy, new_policy, score_pass, update_pass
from ral_system.planning.workload import step_samples
from tests.composed import compose_config
from tests.unit.planning.models import write_7b

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_eight_layers_of_the_7b_hold_what_is_planned(tmp_path: Path, tiny_model: Path) -> None:
    folder = write_7b(tmp_path / "model", tiny_model, layers=8)
    overrides = ("experiment=ral_qwen2_5_vl_7b_8gpu", "plan.medium=none", "plan.text_tokens=4096")
    config = compose_config(*overrides, "plan.response_tokens=512", kind=PlanCommandConfig)
    outline = OutlinedPolicy(folder, "bfloat16", "cuda", config, trained=True)
    samples = step_samples(config, config.plan, outline.family)[:8]
    device = torch.device("cuda")
    policy = new_policy(outline.family, "bfloat16", device, config, trained=True).to(device)
    scores = {sample.id: outline.blank_scores(sample) for sample in samples}
    batch = outline.collate(samples).to(device)

    def measured(score: bool) -> int:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        if score:
            score_pass(policy, batch, [outline.read])
        else:
            update_pass(policy, batch, samples, scores, config, outline.read)
        return torch.cuda.max_memory_allocated() - before

    planned = outline.score(samples, [outline.read]).peak, outline.update(samples).peak
    found = measured(True), measured(False)
    print(f"score: planned {planned[0] / 2**30:.2f} GiB, held {found[0] / 2**30:.2f}")
    print(f"update: planned {planned[1] / 2**30:.2f} GiB, held {found[1] / 2**30:.2f}")
    assert planned == pytest.approx(found, rel=0.1)
