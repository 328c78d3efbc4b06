"""What the model reads, against the processor's own way of making it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ral_system.batches.collate import Collator
from ral_system.data.chat import ChatRenderer
from ral_system.errors import DataError
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family
from ral_system.tasks.tiny_model import CHAT_TEMPLATE
from ral_system.types import Media, Sample
from tests.unit.eager import token_types

SIZES = [(56, 56), (84, 56), (28, 28), (30, 131), (224, 100)]  # also too small, and no multiple of a token's side


class Bench:
    def __init__(self, folder: Path, media: MediaStore) -> None:
        self.family = load_family(folder)
        self.processor: Any = self.family.processor
        self.render, self.collate = ChatRenderer(self.family, "answer"), Collator(self.family, media)
        self.store, self.open = media, media.open
        self.media = [media.put(Image.effect_noise(size, 60 + i).convert("RGB")) for i, size in enumerate(SIZES)]

    def sample(self, id: str, images: list[Media], response: str = "<answer> red </answer>") -> Sample:
        prompt = self.render.prompt(id=id, kind="k", question="what is at a1 ?", answer="red", media=images)
        return Sample(id, prompt, self.render.response(response))

    def by_the_processor(self, images: list[Media]) -> Any:
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": "what is at a1 ?"}]
        messages = [{"role": "system", "content": "answer"}, {"role": "user", "content": content}]
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self.processor(text=[text], images=[self.open(m) for m in images] or None, return_tensors="pt")


@pytest.fixture(scope="module")
def bench(tiny_model: Path, media: MediaStore) -> Bench:
    return Bench(tiny_model, media)


@pytest.mark.parametrize("chosen", [[], [0], [2], [3], [4], [0, 1], [4, 3, 2, 1, 0]])
def test_prompts_and_pixels_are_those_of_the_processor(bench: Bench, chosen: list[int]) -> None:
    images = [bench.media[i] for i in chosen]
    sample, expected = bench.sample("s", images), bench.by_the_processor(images)
    assert list(sample.prompt.token_ids) == expected["input_ids"][0].tolist()
    assert sample.prompt.media == tuple(images)
    batch = bench.collate((sample,))
    if images:
        assert torch.equal(batch.features["pixel_values"], expected["pixel_values"])
        assert torch.equal(batch.features["image_grid_thw"], expected["image_grid_thw"])
        assert len(batch.features) == 2
    else:
        assert batch.features == {}


@pytest.mark.parametrize(
    ("question", "images"),
    [
        ("what is at a1 ?", 1),
        ("what is <image> at a1 ?", 1),
        ("<image> what is <image> <image> at <image> a1 ? <image>", 5),
        ("what is at a1 ?<image>", 1),
    ],
)
def test_a_question_s_positions_are_its_words_wherever_its_pictures_stand(
    bench: Bench, question: str, images: int
) -> None:
    prompt = bench.render.prompt(id="p", kind="", question=question, answer="", media=bench.media[:images])
    asked = [prompt.token_ids[i] for i in prompt.question_positions]
    assert bench.processor.tokenizer.convert_ids_to_tokens(asked) == ["what", "is", "at", "a1", "?"]
    ((instruction,),) = bench.collate((Sample("s", prompt, (3,)),)).rows["instruction"]
    assert instruction.tolist() == list(prompt.question_positions)


ADDS_A_SYSTEM_TURN = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system what is red ?<|im_end|>{% endif %}" + CHAT_TEMPLATE
)
AS_QWEN2_5_VL = (  # its structure: a default system turn in front of the first message, and line ends between turns
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nwhat is a red star .<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BEGINS_WITH_A_TOKEN = "<|endoftext|>" + CHAT_TEMPLATE


@pytest.mark.parametrize(
    ("template", "system_prompt", "expected"),
    [
        (CHAT_TEMPLATE, "", 0),
        (CHAT_TEMPLATE, "what is red", 6),
        (ADDS_A_SYSTEM_TURN, "", 7),  # the template's own turn is as much a system turn as ours
        (ADDS_A_SYSTEM_TURN, "what is red", 6),
        (AS_QWEN2_5_VL, "", 9),
        (AS_QWEN2_5_VL, "what is red", 6),
        (BEGINS_WITH_A_TOKEN, "", 0),  # a beginning of sequence is not a turn
        (BEGINS_WITH_A_TOKEN, "what is red", 7),
    ],
)
def test_system_tokens_are_all_before_the_user_s_turn(
    tiny_model: Path, media: MediaStore, template: str, system_prompt: str, expected: int
) -> None:
    family = load_family(tiny_model)
    family.processor.chat_template = template
    image = media.put(Image.effect_noise((56, 56), 60).convert("RGB"))
    prompt = ChatRenderer(family, system_prompt).prompt(id="p", kind="", question="what ?", answer="", media=[image])
    assert prompt.system_tokens == expected
    words = family.tokenizer.convert_ids_to_tokens(prompt.token_ids)
    assert words[expected + (template == BEGINS_WITH_A_TOKEN and not expected) :][:2] == ["<|im_start|>", "user"]


def test_a_response_ends_its_turn(bench: Bench) -> None:
    ids = bench.render.response("<answer> red </answer>")
    assert bench.processor.tokenizer.convert_ids_to_tokens(ids) == ["<answer>", "red", "</answer>", "<|im_end|>"]


def test_text_that_looks_like_a_picture_is_refused(bench: Bench) -> None:
    with pytest.raises(ValueError, match=r"prompt p: the text holds <\|image_pad\|>"):
        bench.render.prompt(id="p", kind="", question="<|image_pad|> ?", answer="", media=bench.media[:1])


def test_a_batch_holds_its_sequences_one_behind_the_other(bench: Bench) -> None:
    samples = (
        replace(bench.sample("long", bench.media[:2], "<think> a1 red circle </think>"), advantage=1.5),
        replace(bench.sample("text", []), advantage=-0.5),
        bench.sample("big", [bench.media[4]], "<answer>"),
    )
    batch = bench.collate(samples)
    longest = max(len(s.response_token_ids) for s in samples)
    assert batch.packing.lengths == tuple(s.length for s in samples)
    assert [[layout.kind for layout in of_sample] for of_sample in batch.layouts] == [["image"] * 2, [], ["image"]]
    assert batch.input_ids.shape == batch.keys.kind.shape == (sum(batch.packing.lengths),)
    assert batch.response_ids.shape == batch.response_mask.shape == (3, longest)
    image = bench.processor.image_token_id
    ids, types = (tensor.split(batch.packing.lengths) for tensor in (batch.input_ids, token_types(batch)))
    for b, sample in enumerate(samples):
        sequence = [*sample.prompt.token_ids, *sample.response_token_ids]
        assert ids[b].tolist() == sequence
        assert types[b].tolist() == [int(t == image) for t in sequence]
        r = len(sample.response_token_ids)
        assert batch.response_ids[b, :r].tolist() == list(sample.response_token_ids)
        assert batch.response_mask[b].tolist() == [True] * r + [False] * (longest - r)
        start = batch.packing.groups[b].prompt
        assert ids[b][start : start + r].tolist() == list(sample.response_token_ids)
    assert batch.advantages.tolist() == [1.5, -0.5, 0.0]
    # pictures in the order of the sequences
    parts = [bench.collate((s,)) for s in (samples[0], samples[2])]
    for name in ("pixel_values", "image_grid_thw"):
        assert torch.equal(batch.features[name], torch.cat([p.features[name] for p in parts]))
    on_meta = batch.to("meta")
    moved = (on_meta.input_ids, on_meta.keys.kind, *on_meta.features.values(), *sum(on_meta.rows["generated"], ()))
    assert {tensor.device.type for tensor in moved} == {"meta"} and len(moved) == 7
    assert bench.collate((samples[1],)).to("cpu").features == {}


@pytest.mark.parametrize("where", ["prompt", "response"])
def test_image_tokens_that_do_not_fit_the_images_name_the_sample(bench: Bench, where: str) -> None:
    good, bad = bench.sample("good", bench.media[:1]), bench.sample("bad", bench.media[:1])
    image = bench.processor.image_token_id
    if where == "prompt":
        at = bad.prompt.token_ids.index(image)
        ids = bad.prompt.token_ids[:at] + bad.prompt.token_ids[at + 1 :]
        bad = replace(bad, prompt=replace(bad.prompt, token_ids=ids))
    else:
        bad = replace(bad, response_token_ids=(*bad.response_token_ids, image))
    found = {"prompt": "3 image tokens", "response": r"4 image tokens \+ 1 image tokens"}[where]
    with pytest.raises(DataError, match=f"sample bad has {found}, but its media make 4 image tokens"):
        bench.collate((good, bad))


def test_tokens_moved_from_one_sample_to_another_are_noticed(bench: Bench) -> None:
    # the sum over the batch is right, each sample is not
    one, two = bench.sample("one", bench.media[:1]), bench.sample("two", bench.media[1:2])
    swapped = replace(one, prompt=replace(one.prompt, media=two.prompt.media))
    back = replace(two, prompt=replace(two.prompt, media=one.prompt.media))
    with pytest.raises(DataError, match="sample one has 4 image tokens, but its media make 6"):
        bench.collate((swapped, back))


def test_image_tokens_without_any_image_are_noticed(bench: Bench) -> None:
    sample = bench.sample("s", [])
    image = bench.processor.image_token_id
    with pytest.raises(DataError, match="sample s has 1 image tokens, but its media make none"):
        bench.collate((replace(sample, response_token_ids=(image,)),))
