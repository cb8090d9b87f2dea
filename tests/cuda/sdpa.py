"""Times PyTorch's attention on this machine's GPU, for comparison with ours.

    python3 tests/cuda/sdpa.py [ROWS TOKENS HEADS DIM]

needs a PyTorch with CUDA. It prints one line like those of
`NANOCHAT_TEST_GPU=1 go test ./kernels/cuda -run TestFlashSpeed -v`: the medians of nine
rounds of ten calls, by events, of causal attention with the flash backend in bfloat16.
"""

import statistics
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention


def seconds(call, calls=10, rounds=10):
    times = []
    for _ in range(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / calls)
    return statistics.median(times[1:])  # the first warms up


def main():
    rows, tokens, heads, dim = map(int, sys.argv[1:5] or (64, 1024, 12, 64))
    torch.manual_seed(1)
    # [rows][tokens][heads][dim] in memory, as a network's projections give it.
    q, k, v, dout = (
        torch.randn(rows, tokens, heads, dim, device="cuda", dtype=torch.bfloat16).transpose(1, 2) for _ in range(4)
    )
    for x in (q, k, v):
        x.requires_grad_()
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):

        def forward():
            return scaled_dot_product_attention(q, k, v, is_causal=True)

        out = forward()
        with torch.no_grad():
            ahead = seconds(forward)
        back = seconds(lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True))
    pairs = rows * heads * tokens * (tokens + 1) / 2
    print(
        f"PyTorch {torch.__version__} on {torch.cuda.get_device_name()}, "
        f"{rows} rows of {tokens}, {heads} heads of {dim}, causal: "
        f"forward {1e3 * ahead:.3f} ms ({4 * pairs * dim / ahead / 1e12:.0f} TFLOPS), "
        f"backward {1e3 * back:.3f} ms ({10 * pairs * dim / back / 1e12:.0f} TFLOPS)"
    )


if __name__ == "__main__":
    main()
