"""What the shards of a checkpoint are called."""


def shard_name(kind: str, number: int, total: int) -> str:
    """HuggingFace's name of shard `number` (from 0) of `total`."""
    return f"{kind}.safetensors" if total == 1 else f"{kind}-{number + 1:05d}-of-{total:05d}.safetensors"
