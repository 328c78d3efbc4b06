"""What passes hold on a GPU: as much as is planned without one."""

from pathlib import Path

import pytest
import torch

from ral_system.config.commands import PlanCommandConfig
from ral_system.planning.passes import OutlinedPolicy, new_policy, score_pass, update_pass
from ral_system.planning.workload import step_samples
from tests.composed import compose_config
from tests.gpu.devices import GPU
from tests.gpu.rows import row
from tests.unit.planning.models import write_7b

pytest.importorskip("hydra")
pytestmark = GPU


@pytest.mark.parametrize(("prompt", "response"), [(8192, 768), (15360, 1024)])
def test_eight_layers_of_the_7b_hold_what_is_planned(
    tmp_path: Path, tiny_model: Path, prompt: int, response: int
) -> None:
    folder = write_7b(tmp_path / "model", tiny_model, layers=8)
    overrides = ("experiment=ral_qwen2_5_vl_7b_8gpu", "rollout.max_model_len=16384", "plan.medium=none")
    lengths = (f"plan.text_tokens={prompt}", f"plan.response_tokens={response}")
    config = compose_config(*overrides, *lengths, kind=PlanCommandConfig)
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
    for name, expected, held in zip(("score", "update"), planned, found, strict=True):
        sizes = f"planned {expected / 2**30:.2f} GiB", f"held {held / 2**30:.2f} GiB"
        row(f"{name}, {prompt:,} + 8 × {response:,} tokens", *sizes)
    assert planned == pytest.approx(found, rel=0.1)
