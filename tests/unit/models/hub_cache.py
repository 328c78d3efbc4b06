"""A Hugging Face Hub cache with one model, made without a network."""

from pathlib import Path

REPO, REVISION = "org/tiny", "0123456789abcdef0123456789abcdef01234567"


def put_in_cache(home: Path, weights: bytes = b"weights") -> Path:
    """The folder of the snapshot, in the cache that HF_HOME=home has."""
    repo = home / "hub" / "models--org--tiny"
    snapshot = repo / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(REVISION)
    (snapshot / "config.json").write_text('{"model_type": "tiny"}')
    (snapshot / "model.safetensors").write_bytes(weights)
    return snapshot
