"""The environment that worker processes are started with: threads, and what makes memory cheap to get."""


def worker_environment(threads: int) -> dict[str, str]:
    """To be added to this process's environment."""
    return {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}
