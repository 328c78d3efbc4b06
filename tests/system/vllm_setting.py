"""A vLLM engine in this process beside a transformers model with the weights that it should hold."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from ral_system.batches.features import FeatureExtractor
from ral_system.config.choices import Dtype
from ral_system.config.rollout import RolloutConfig
from ral_system.data.chat import ChatRenderer
from ral_system.heavy_imports import heavy_imports
from ral_system.media.store import MediaStore
from ral_system.models.loading import TORCH_DTYPES, load_family, load_model
from ral_system.tasks.visual_search import VisualSearch
from ral_system.types import Completion, Media, Prompt, Sampling
from ral_system.weights.manifest import verify_loaded
from ral_system.weights.transfer.object_store import Arrays
from tests.offered import offered
from tests.unit.rollout.new_weights import Arrivals
from tests.unit.rollout.top_tokens import check_top_tokens

CONFIG = TypeAdapter(RolloutConfig).validate_python(
    {
        "engine": "vllm",
        "workers": 1,
        "temperature": 0.8,
        "max_new_tokens": 24,
        "stop_at_answer": False,
        "max_model_len": 512,
        "max_sequences": 32,
        "dtype": "float32",
        "tensor_parallel": 1,
        "memory_gib": 0.5,
        "gpu_memory_utilization": 0.5,
        "weight_transfer": None,
        "weight_timeout_s": 60.0,
        "on_new_weights": "finish",
        "log_prob_gate": {"token": 1e-4, "outliers": 0.0, "mean": None, "p999": None},
    }
)
SAMPLING = Sampling(completions=4, temperature=0.8, max_new_tokens=24, seed=11)


class Setting:
    """The engine, and a transformers model with the weights that the engine should hold, in float32."""

    def __init__(self, model: Path, folder: Path, dtype: Dtype = "float32") -> None:
        self.media = MediaStore(folder / "media")
        self.model = load_model(model, dtype="float32")
        self.family = load_family(model)
        self.processor, self.banned = self.family.processor, self.family.banned_ids
        renderer = ChatRenderer(self.family, "answer")
        source = VisualSearch(seed=0, grid=3, objects=4)
        self.prompts = []
        for index in range(6):
            record = source.record("train", index)
            stored = (self.media.put(record.image),)
            prompt = renderer.prompt(id=f"train/{index}", kind="", question=record.question, answer="", media=stored)
            self.prompts.append(prompt)
        with heavy_imports():  # also for the next engine: closing one has undone it
            from ral_system.rollout.vllm_generator import VllmEngine

        self._published = TORCH_DTYPES[dtype]
        config = CONFIG.model_copy(update={"dtype": dtype})
        self.engine = VllmEngine(model, config, self.media, seed=0, device="cpu")

    def generate(self, prompts: list[Prompt] | None = None, sampling: Sampling = SAMPLING) -> dict[str, Completion]:
        found = {c.id: c for c in self.engine.generate(prompts or self.prompts, sampling)}
        assert len(found) == len(prompts or self.prompts) * sampling.completions
        return found

    def generate_with_arrival(self, weights: Arrays) -> dict[str, Completion]:
        """`generate`, with weights that arrive after nine of the engine's steps."""
        core, arrivals = self.engine._llm.llm_engine, Arrivals(self.engine, {9: weights})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(core, "step", core.step)  # to be taken back
            arrivals.watch(core, "step")
            found = self.generate()
        (manifest,) = arrivals.done()
        verify_loaded(weights.manifest, manifest)
        return found

    def perturbed(self, version: int) -> Arrays:
        torch.manual_seed(version)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        return offered(version, {name: w.to(self._published) for name, w in self.model.state_dict().items()})

    @torch.no_grad()
    def log_probs(self, prompt: Prompt, completion: Completion, temperature: float) -> np.ndarray:
        extract = FeatureExtractor(self.family, self.media)
        unique, occurrences = extract.distinct(prompt.media)
        seen = self.family.inputs(self.family.encode(self.model.model, extract(unique)), occurrences)
        ids = torch.tensor([[*prompt.token_ids, *completion.token_ids]])
        layouts = [self.family.layout(medium) for medium in prompt.media]
        positions = self.family.positions(self.family.visual(ids[0]), layouts)
        position_ids = positions[:, None] if len(positions) > 1 else positions
        logits = self.model(input_ids=ids, position_ids=position_ids, **seen).logits[0].float()
        logits = logits[len(prompt.token_ids) - 1 : -1] / temperature
        logits[:, list(self.banned)] = -torch.inf
        check_top_tokens(completion, logits.log_softmax(-1), tolerance=1e-4)
        return logits.log_softmax(-1).gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0].numpy()

    def about(self, id: str, question: str, media: list[Media]) -> Prompt:
        renderer = ChatRenderer(self.family, "answer")
        return renderer.prompt(id=id, kind="", question=question, answer="", media=media)

    def check_expansions(self, questions: list[str], media: list[Media]) -> list[bool]:
        """Check whether vLLM tokenises each question like the processor; where it does not, the prompt is refused."""
        same = []
        for question in questions:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(type(self.family), "expansion_problem", lambda *_: None)
                prompt = self.about("p", question, media)
            try:
                made = self.engine._processed(prompt)["prompt_token_ids"]
            except RuntimeError:  # it does not find a picture in its own tokens
                made = ()
            same.append(self.family.seen_ids(made) == prompt.token_ids)
            if same[-1]:
                assert self.about("p", question, media) == prompt
            else:
                with pytest.raises(ValueError, match=r"^prompt p: .*vLLM.*; (put <video>|write words).*rollout=hf$"):
                    self.about("p", question, media)
        self.engine._drop_caches()  # its core never got the media that it processed
        return same

    def largest_difference(
        self, found: dict[str, Completion], temperature: float, prompts: list[Prompt] | None = None
    ) -> float:
        by_id = {p.id: p for p in prompts or self.prompts}
        return max(
            np.abs(self.log_probs(by_id[c.prompt_id], c, temperature) - np.array(c.log_probs)).max()
            for c in found.values()
        )
