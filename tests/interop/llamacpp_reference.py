"""Ask llama.cpp, by the Python package xllamacpp, for the next token's log
probabilities.

    llamacpp_reference.py MODEL.gguf OUT.f32 VOCAB ID...

writes [VOCAB] float32: the log probability of every token after the given ones.
"""

import sys

import numpy as np
import xllamacpp


def main():
    path, out, vocab, ids = sys.argv[1], sys.argv[2], int(sys.argv[3]), [int(a) for a in sys.argv[4:]]
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = 128
    params.n_gpu_layers = 0
    params.warmup = False
    params.cpuparams.n_threads = 1
    server = xllamacpp.Server(params)
    answer = {}
    request = {"prompt": ids, "n_predict": 1, "n_probs": vocab, "temperature": 0.0, "top_k": 0, "top_p": 1.0}
    request |= {"min_p": 0.0, "post_sampling_probs": False, "cache_prompt": False}
    result = server.handle_completions(request, answer.update)
    if isinstance(result, dict):
        answer = result
    logprobs = np.full(vocab, np.nan, "<f4")
    first = (answer.get("completion_probabilities") or answer["choices"][0]["logprobs"]["content"])[0]
    for entry in first["top_logprobs"]:
        logprobs[entry["id"]] = entry["logprob"]
    logprobs.tofile(out)


if __name__ == "__main__":
    main()
