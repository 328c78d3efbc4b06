"""What `ral-export` writes, read by other libraries in an environment that does not have this package."""

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from PIL import Image

from ral_system.data.chat import ChatRenderer
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family, load_model
from ral_system.tasks.visual_search import VisualSearch
from tests.hub import Hub

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

MARK = "what vLLM says:"
QUESTION = "what is the digit ?"
HOOK = Path("ral_system/torchvision_hook.py")

LMMS_EVAL = """
from transformers import AutoProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration
model = Qwen2_5_VLForConditionalGeneration.from_pretrained("exported", torch_dtype="bfloat16", device_map="cpu").eval()
processor = AutoProcessor.from_pretrained("exported", max_pixels=1605632, min_pixels=256 * 28 * 28)
tokenizer = AutoTokenizer.from_pretrained("exported")
assert type(processor).__name__ == "Qwen2_5_VLProcessor" and tokenizer.eos_token_id is not None
"""
"""How the model `qwen2_5_vl` of lmms-eval 0.7.3 loads a folder."""

VLLM = """
from vllm import LLM, SamplingParams
from PIL import Image
llm = LLM("exported", dtype="float32", max_model_len=256, enforce_eager=True, kv_cache_memory_bytes=2**27,
          limit_mm_per_prompt={"image": 1}, max_num_seqs=4)
picture = {"type": "image_pil", "image_pil": Image.open("picture.png")}
messages = [{"role": "system", "content": "answer"},
            {"role": "user", "content": [picture, {"type": "text", "text": QUESTION}]}]
sampling = SamplingParams(temperature=0, max_tokens=12, skip_special_tokens=False)
print(llm.chat(messages, sampling)[0].outputs[0].text)
"""


@pytest.fixture(scope="module")
def run(commands, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a run has trained `tiny_model` for a few steps."""
    folder = tmp_path_factory.mktemp("exports")
    local = ("experiment=smoke", "cluster=local", "cluster.threads_per_process=1", "algorithm.steps=2")
    done = commands("ral-rl", *local, f"start_model={tiny_model}", "evaluation.every=0", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with all packages of this one but ral_system."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=120)
    packages = folder / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    # Wheels of torch and torchvision that do not fit each other need what this file does; it knows nothing of us.
    (packages / "torchvision_hook.py").write_text(HOOK.read_text(encoding="utf-8"), encoding="utf-8")
    lines = [str(Path(torch.__file__).parents[1]), "import torchvision_hook; torchvision_hook.install()"]
    (packages / "packages.pth").write_text("\n".join(lines), encoding="utf-8")
    return folder / "bin" / "python"


def read_by(python: Path, code: str, folder: Path, environment: dict[str, str]) -> str:
    """Run code in the bare environment; returns what it printed."""
    alone = "import importlib.util\nassert importlib.util.find_spec('ral_system') is None\n"
    done = subprocess.run(
        [python, "-P", "-c", alone + code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_exported_model_answers_alike_in_libraries_that_do_not_know_us(
    commands, run: Path, bare: Path, tmp_path: Path
) -> None:
    done = commands("ral-export", "runs/smoke", str(tmp_path / "exported"), cwd=run)
    assert done.returncode == 0, done.stderr
    assert f"the card is {tmp_path}/exported/README.md" in done.stdout
    record = VisualSearch(seed=0, grid=3, objects=4).record("train", 0)
    record.image.save(tmp_path / "picture.png")

    family = load_family(tmp_path / "exported")
    media = MediaStore(tmp_path / "media")
    picture = media.put(Image.open(tmp_path / "picture.png"))
    prompt = ChatRenderer(family, "answer").prompt(id="p", kind="", question=QUESTION, answer="", media=[picture])
    model = load_model(run / "runs/smoke/model", dtype="float32")
    features = family.features([picture], [Image.open(tmp_path / "picture.png")])[0]
    with torch.no_grad():
        answer = model.generate(
            input_ids=torch.tensor([prompt.token_ids]),
            mm_token_type_ids=family.visual(torch.tensor([prompt.token_ids])).long(),
            max_new_tokens=12,
            do_sample=False,
            **features,
        )[0, len(prompt.token_ids) :]

    card = (tmp_path / "exported" / "README.md").read_text(encoding="utf-8")
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1).replace("…", QUESTION)
    environment = commands.environment(
        VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="ERROR"
    )
    code = f"{snippet}\n{LMMS_EVAL}\nprint({MARK!r})\nQUESTION = {QUESTION!r}\n{VLLM}"
    by_transformers, by_vllm = read_by(bare, code, tmp_path, environment).split(MARK)
    assert by_transformers.strip() == family.tokenizer.decode(answer).strip()
    end = family.tokenizer.eos_token  # which vLLM leaves out
    assert len(answer) > 1
    assert by_vllm.splitlines()[-1].strip() == by_transformers.strip().removesuffix(end).strip()


def test_an_exported_model_is_uploaded_whole(commands, run: Path, hub: str, tmp_path: Path) -> None:
    export = ("ral-export", "runs/smoke", str(tmp_path / "out"), "--push-to-hub", "lab/model")
    online = {"HF_ENDPOINT": hub, "HF_TOKEN": "hf_secret", "HF_HUB_OFFLINE": "0"}
    done = commands(*export, cwd=run, fresh=True, **online)
    assert done.returncode == 0, done.stderr
    assert Hub.created["visibility"] == "private"
    assert Hub.files == sorted(file.name for file in (tmp_path / "out").iterdir())
    assert "README.md" in Hub.files and "model.safetensors" in Hub.files and "stage.json" not in Hub.files
    assert "hf_secret" not in done.stdout + done.stderr


def test_mistakes_are_told_in_one_line(commands, run: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (("runs/none", "out"), "runs/none has no config.yaml; give the folder of a run, for example runs/quickstart"),
        (("runs/smoke", "runs"), "runs exists; give a folder that does not"),
        (("runs/smoke", "out", "--stage", "sft"), "--stage sft: not complete in"),
        (("runs/smoke", "out", "--adapters"), "trained no adapters; leave it out"),
        (("runs/smoke", "out", "--public"), "--public has no effect without --push-to-hub"),
        (("runs/smoke", "out", "--adapters", "--dtype", "bfloat16"), "--dtype is for whole models"),
    ):
        done = commands("ral-export", *arguments, cwd=run)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
        assert not (run / "out").exists()
