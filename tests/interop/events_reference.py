"""Prints what TensorBoard's own reader finds in a directory of event files, as JSON."""

import json
import sys

from tensorboard.backend.event_processing import event_accumulator

size = dict.fromkeys(("scalars", "histograms", "tensors", "compressedHistograms", "images"), 0)  # 0: keep all
a = event_accumulator.EventAccumulator(sys.argv[1], size_guidance=size)
a.Reload()
tags = a.Tags()
json.dump(
    {
        "scalars": {t: [[e.step, e.wall_time, e.value] for e in a.Scalars(t)] for t in tags["scalars"]},
        "histograms": {
            t: [
                [e.step, [h.min, h.max, h.num, h.sum, h.sum_squares], list(h.bucket_limit), list(h.bucket)]
                for e in a.Histograms(t)
                for h in [e.histogram_value]
            ]
            for t in tags["histograms"]
        },
        "texts": {
            t: [[e.step, [s.decode() for s in e.tensor_proto.string_val]] for e in a.Tensors(t)]
            for t in tags["tensors"]
            if a.SummaryMetadata(t).plugin_data.plugin_name == "text"
        },
    },
    sys.stdout,
)
