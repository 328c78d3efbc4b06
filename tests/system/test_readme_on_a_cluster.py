"""The README's commands for a cluster, typed as they stand, on two hosts as the kernel sees them.

Hosts are network namespaces joined by a cable, with a name and a home each, so Ray's default ports are free. The
experiment and the shared folder are the only words that are replaced, and HEAD, as the README asks. Each host has one
CPU, as Ray reads it from the environment, so the run needs both.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL, SIGTERM

import pytest

from tests.system.marks import marking, new_mark

pytestmark = [
    pytest.mark.system,
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2"),
]

HEAD, OTHER = f"ral-head-{os.getpid()}", f"ral-other-{os.getpid()}"
HOSTS = {HEAD: "10.79.0.1", OTHER: "10.79.0.2"}
CABLE = "ral-cluster"
NAMES = Path("/etc/netns")
"""Files below `NAMES / host` take the place of those in /etc there (`ip netns exec`)."""
ROOT = Path(__file__).parents[2]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def typed(marked, end_of, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], str]]:
    """Type a line into a shell of a host, and return what it prints."""
    mark, sessions = new_mark(), tempfile.mkdtemp(prefix="ral_", dir="/tmp")  # short: Ray puts sockets into it
    folders = {name: tmp_path_factory.mktemp(name) for name in HOSTS}
    environment = {
        "PATH": f"{Path(shutil.which('ray') or '').parent}:{os.environ['PATH']}",
        "RAY_TMPDIR": sessions,
        "RAY_worker_niceness": "0",
        "RAY_OVERRIDE_RESOURCES": '{"CPU": 1}',
        "WANDB_MODE": "disabled",
        **marking(mark),
    }

    def say(host: str, line: str) -> str:
        named = ["unshare", "--uts", "bash", "-c", f"hostname {host} && {line}"]
        command = ["ip", "netns", "exec", host, *named]
        home = {"HOME": str(folders[host]), "RAY_AUTH_MODE": "token"}
        done = subprocess.run(
            command, cwd=folders[host], env=environment | home, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, (line, done.stdout[-4000:], done.stderr[-4000:])
        return done.stdout + done.stderr

    try:
        for name in HOSTS:
            ip("netns", "add", name)
            (NAMES / name).mkdir(parents=True)
            known = {"localhost": "127.0.0.1"} | HOSTS
            (NAMES / name / "hosts").write_text("".join(f"{address} {host}\n" for host, address in known.items()))
        ip("-n", HEAD, "link", "add", CABLE, "type", "veth", "peer", "name", CABLE, "netns", OTHER)
        for name, address in HOSTS.items():
            ip("-n", name, "address", "add", f"{address}/24", "dev", CABLE)
            ip("-n", name, "link", "set", CABLE, "up")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "route", "add", "default", "dev", CABLE)  # Ray asks the kernel which address leads out
        say.home = folders  # type: ignore[attr-defined]
        yield say
    finally:
        for signal in (SIGTERM, SIGKILL):
            for pid in marked(mark):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal)
            with suppress(AssertionError):
                end_of(mark, 30.0)
        for name in HOSTS:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
            shutil.rmtree(NAMES / name, ignore_errors=True)
        shutil.rmtree(sessions, ignore_errors=True)


def lines() -> list[str]:
    """The section's commands, without comments and with continued lines joined."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## On a cluster\n")[2].partition("\n## ")[0]
    code = "\n".join(line[4:] for line in section.splitlines() if line.startswith("    "))
    return [re.sub(r"\s+# .*", "", line) for line in code.replace("\\\n", " ").splitlines()]


def test_the_commands_of_the_readme_train_on_two_hosts(typed, tmp_path: Path) -> None:
    environment, token, head, other, submit = lines()
    assert environment == "export RAY_AUTH_MODE=token"
    typed(HEAD, token)
    secret = typed.home[HEAD] / ".ray" / "auth_token"
    assert secret.stat().st_mode & 0o077 == 0
    typed(HEAD, head)
    (typed.home[OTHER] / ".ray").mkdir(mode=0o700)
    shutil.copy2(secret, typed.home[OTHER] / ".ray" / "auth_token")
    typed(OTHER, other.replace("HEAD", HOSTS[HEAD]))
    submit = submit.replace("ral_qwen2_5_vl_7b_8gpu", "smoke").replace("/shared", str(tmp_path))
    said = typed(HEAD, submit)
    assert "RL: ended at step 4 of 4" in said and "succeeded" in said
    run = tmp_path / "runs" / "smoke"
    assert str(run) in said
    assert all((run / name).exists() for name in ("report.html", "summary.json", "model/config.json"))
    began = "".join(log.read_text(errors="replace") for log in (run / "logs").glob("*.log"))
    hosts = dict(re.findall(r"^--- (\w+ \d+): pid \d+ on (\S+)$", began, re.MULTILINE))
    assert {"learner 0", "learner 1", "rollout 0", "reference 0", "reward 0"} <= hosts.keys()
    assert set(hosts.values()) == HOSTS.keys(), hosts
    job = re.search(r"raysubmit_\w+", said)
    assert job
    address = "--address http://127.0.0.1:8265"
    assert "RL: ended" in typed(HEAD, f"ray job logs {address} {job[0]}")
    assert job[0] in typed(HEAD, f"ray job list {address}")
