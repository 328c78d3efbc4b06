"""Video-search records as questions, and as demonstrations for the supervised stages."""

from __future__ import annotations

from collections.abc import Sequence

from ral_system.config.choices import ResponseFormat, SupervisedStage
from ral_system.config.data import AskedVideosConfig, VideoSearchConfig
from ral_system.data.chat import ChatRenderer
from ral_system.media.store import MediaStore
from ral_system.tasks.video_search import FRAMES_PER_S, KINDS, MAX_SECONDS, VideoRecord, VideoSearch
from ral_system.tasks.visual_search_prompts import STRIDE
from ral_system.types import Prompt, Region, Sample, Split, VideoSampling


class VideoSearchRecords:
    """The records that `config` asks for. Lengths of videos take turns: one of each question kind, then the next."""

    def __init__(self, config: AskedVideosConfig, described: int = MAX_SECONDS) -> None:
        self._lengths = [VideoSearch(config.seed, seconds, described) for seconds in config.seconds]
        self.in_a_turn = len(KINDS) * len(self._lengths)

    def record(self, split: Split, index: int) -> VideoRecord:
        """The `index`-th record of `split`."""
        return self._lengths[index // len(KINDS) % len(self._lengths)].record(split, index)


class VideoSearchQuestions:
    """Question `i` of a split is a pure function of (data seed, split, i); its video is stored when made."""

    def __init__(
        self, config: AskedVideosConfig, renderer: ChatRenderer, media: MediaStore, described: int = MAX_SECONDS
    ) -> None:
        self.records, self._renderer, self._media = VideoSearchRecords(config, described), renderer, media
        step = renderer.family.frames_per_view
        self._samplings = [VideoSampling(FRAMES_PER_S, most, 2, step) for most in config.max_frames]

    def question(self, split: Split, index: int) -> Prompt:
        """The `index`-th question of `split`, to be answered."""
        record = self._record(split, index)
        return self._asked(record)

    def held_out(self, count: int) -> list[Prompt]:
        """The first `count` held-out questions; kinds take turns."""
        return [self.question("held_out", i) for i in range(count)]

    def _record(self, split: Split, index: int) -> VideoRecord:
        return self.records.record(split, index)

    def _asked(self, record: VideoRecord) -> Prompt:
        return self._prompt(record, record.kind, record.question, record.answer, suffix="", evidence=record.evidence)

    def _prompt(
        self,
        record: VideoRecord,
        kind: str,
        question: str,
        answer: str,
        *,
        suffix: str,
        evidence: Sequence[Region] = (),
    ) -> Prompt:
        sampling = self._samplings[record.index // self.records.in_a_turn % len(self._samplings)]
        return self._renderer.prompt(
            id=f"{record.split}/{record.index}{suffix}",
            kind=kind,
            question=question,
            answer=answer,
            media=(self._media.put_frames(record.frames, FRAMES_PER_S, sampling),),
            evidence=evidence,
        )


class VideoSearchPrompts(VideoSearchQuestions):
    """The questions, and demonstrations. Training records repeat after `config.train_records`."""

    def __init__(
        self, config: VideoSearchConfig, renderer: ChatRenderer, media: MediaStore, *, response_format: ResponseFormat
    ) -> None:
        super().__init__(config, renderer, media, config.described)
        self._train_records, self._format = config.train_records, response_format

    def demonstration(self, stage: SupervisedStage, split: Split, index: int, *, seed: int = 0) -> Sample:
        """The `index`-th example: perceive says what seconds show, then which second shows what, in the order asked
        for; sft thinks and answers in the template.
        """
        record = self._record(split, index + (seed * STRIDE if split == "train" else 0))
        if stage == "perceive":
            question = f"{record.caption_question} {record.search_question}"
            answer = f"{record.caption} {record.search}"
            prompt = self._prompt(record, "caption", question, answer, suffix="/caption")
            answered = f"<answer> {answer} </answer>"
        else:
            prompt = self._asked(record)
            answered = f"<answer> {record.answer} </answer>"
            if self._format == "think_answer":
                answered = f"<think> {record.thought} </think> {answered}"
        return Sample(prompt.id, prompt, self._renderer.response(answered))

    def _record(self, split: Split, index: int) -> VideoRecord:
        return super()._record(split, index % self._train_records if split == "train" else index)
