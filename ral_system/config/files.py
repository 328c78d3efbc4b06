"""Checks that files of questions have what a command needs; `combinations` calls them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ral_system.config.algorithm import AlgorithmConfig, ResponseConfig
from ral_system.config.attention_objective import EvidenceObjectiveConfig
from ral_system.config.choices import Stage
from ral_system.config.data import AskedDataConfig, DataConfig, FilesConfig
from ral_system.config.evaluation import EvaluationConfig, HeldOutConfig, MeasurementConfig


def files_are_given(data: AskedDataConfig, evaluation: HeldOutConfig) -> Iterator[str]:
    """Check that there are questions to ask."""
    benchmark = evaluation.benchmark.name if isinstance(evaluation, MeasurementConfig) else None
    if isinstance(data, FilesConfig) and not data.sources and benchmark is None:
        yield "data.sources={}: no file; add one, +data/source@data.sources.NAME=video_r1 data.sources.NAME.path=FILE"


def files_fit_the_stages(data: AskedDataConfig, stages: Sequence[Stage], algorithm: ResponseConfig) -> Iterator[str]:
    """Check that files of questions have the columns that the stages imitate."""
    if not isinstance(data, FilesConfig):
        return
    if "perceive" in stages:
        yield (
            f"stages={list(stages)}: perceive needs captions, and data=files has none; set stages=[sft,rl], and sft "
            "begins with a tiny model that knows the words of the rows, or stages=[rl] and a model in start_model"
        )
    without = [name for name, source in data.sources.items() if source.columns.thought is None]
    if "sft" in stages and algorithm.response_format == "think_answer" and without:
        yield (
            f"data.sources.{without[0]}.columns.thought=null leaves sft no thought to imitate; name the column, "
            "set stages=[rl], or algorithm.response_format=answer_only"
        )


def files_say_where_to_look(data: DataConfig, algorithm: AlgorithmConfig) -> Iterator[str]:
    """Check that an objective on evidence has data with evidence."""
    objective = algorithm.attention.objective
    if not isinstance(data, FilesConfig) or not isinstance(objective, EvidenceObjectiveConfig):
        return
    without = [name for name, source in data.sources.items() if source.columns.evidence is None]
    if without and (objective.missing == "raise" or len(without) == len(data.sources)):
        remedy = "name it" if len(without) == len(data.sources) else "name it, or set that objective's missing to skip"
        yield (
            f"data.sources.{without[0]}.columns.evidence=null: algorithm.attention.objective.name=evidence reads boxes "
            f"from that column; {remedy}"
        )


def files_have_pictures(data: DataConfig, algorithm: AlgorithmConfig, evaluation: EvaluationConfig) -> Iterator[str]:
    """Check that settings which need pictures have a source with pictures or videos."""
    if not isinstance(data, FilesConfig) or not data.sources:
        return
    if any(source.columns.images or source.columns.videos for source in data.sources.values()):
        return
    without = "no data.sources.NAME.columns.images or videos is set; name one, or"
    if algorithm.perception.name != "none":
        yield (
            f"algorithm.perception.name={algorithm.perception.name} has no effect on text alone: {without} choose "
            "algorithm/perception=none"
        )
    if evaluation.blind:
        yield f"evaluation.blind=true has no effect on text alone: {without} set it to false"
