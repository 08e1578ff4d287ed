"""The most memory that a training took, over all the processes that continued it one after the other."""

import resource
import sys
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PeakMemory:
    """Of the first process where several train together.

    Attributes:
        resident: the largest resident size, in bytes.
        gpu: the most bytes that tensors took on the GPU at once; 0 without one.
    """

    resident: int = 0
    gpu: int = 0

    def with_this_process(self) -> "PeakMemory":
        """The larger of these and what this process took until now."""
        now = of_this_process()
        return PeakMemory(max(self.resident, now.resident), max(self.gpu, now.gpu))

    def figures(self) -> dict[str, int | None]:
        """Both in MB of 2^20 bytes, as a metric file has them: `peak_memory_mb` of the process, `peak_gpu_memory_mb`
        of the GPU beside it, None where none was used."""
        return {
            "peak_memory_mb": round(self.resident / 2**20),
            "peak_gpu_memory_mb": round(self.gpu / 2**20) if self.gpu else None,
        }

    def __str__(self) -> str:
        text = f"{self.resident / 2**20:,.0f} MB"
        return f"{text} + GPU {self.gpu / 2**20:,.0f} MB" if self.gpu else text


def of_this_process() -> PeakMemory:
    """What this process took until now."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return PeakMemory(resident, torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0)
