"""Times on a GPU: events around each call, the L2 cache flushed before it."""

import gc

import torch

from bench.timer import Step, Times, percentiles

MIN_CALLS, MAX_CALLS = 5, 200
WARM_UP = 3


def replayed(step: Step) -> Step:
    """The step captured in a CUDA graph, its gradients in the graph's own memory."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            step.run()
    torch.cuda.current_stream().wait_stream(stream)
    prepared = step.setup()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = step.call(prepared)

    def replay(_: object) -> object:
        graph.replay()
        return kept

    return Step(replay)


def flush_buffer() -> torch.Tensor:
    """As large as four L2 caches; writing it leaves nothing of anybody in there."""
    size = 4 * torch.cuda.get_device_properties(0).L2_cache_size
    return torch.empty(max(size, 1 << 26), dtype=torch.int8, device="cuda")


def time_step(step: Step, seconds: float) -> Times:
    """Percentiles of about `seconds` of calls; the first ones warm up."""
    buffer = flush_buffer()

    def run(count: int) -> list[float]:
        marks = []
        for _ in range(count):
            prepared = step.setup()
            buffer.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            kept = step.call(prepared)
            end.record()
            del kept
            marks.append((start, end))
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in marks]

    run(1)
    estimate = min(run(WARM_UP))
    count = int(min(MAX_CALLS, max(MIN_CALLS, seconds / max(estimate, 1e-6))))
    gc.collect()
    gc.disable()
    try:
        return percentiles(run(count))
    finally:
        gc.enable()


def peak_bytes(step: Step, leaves: list[torch.Tensor]) -> int:
    """Most memory that one call allocates above inputs and gradients."""
    prepared = step.setup()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    kept = step.call(prepared)
    torch.cuda.synchronize()
    del kept
    gradients = sum(x.grad.nbytes for x in leaves if x.grad is not None)
    return max(0, torch.cuda.max_memory_allocated() - before - gradients)
