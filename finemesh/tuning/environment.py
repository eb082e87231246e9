"""The environment that worker processes are started with: threads, and what makes memory cheap to get.

Every step takes and frees the same large tensors. By default glibc gives each back to the system and takes it anew, page by
page (a tenth of a step, LOG.md). Here freed memory is kept, in huge pages; PeakMemory hands it back between trials. oneDNN
keeps what it has compiled for 1,024 shapes of products, 0.3 MB a shape, and no two batches have as many tokens; torch's own
list (LRU_CACHE_CAPACITY) keeps another 1,024 of them alive, and saves no time beside oneDNN's. A thread that waits for the
others soon sleeps (GOMP_SPINCOUNT): spinning, it holds the core that they need where other programs run, too.
"""

import os

KEEP_MEMORY = ("glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592:"
               "glibc.malloc.top_pad=268435456")


def worker_environment(threads: int) -> dict[str, str]:
    """To be added to this process's environment."""
    return {"OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_DISABLE_TELEMETRY": "1", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "1",
            "GOMP_SPINCOUNT": "1000",
            "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", KEEP_MEMORY)}
