"""Checks YAML of Kubernetes: no key twice, objects against the schemas of Kubernetes,
flags against those of the program, references between the objects.

usage: deploy_check.py NANOCHAT FILE...
"""

import subprocess
import sys

import kubernetes_validate
import yaml


class Strict(yaml.SafeLoader):
    """A loader that refuses a key that comes twice."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(k, deep) for k, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key comes twice in line {node.start_mark.line + 1}: {keys}"
        return super().construct_mapping(node, deep)


program, files = sys.argv[1], sys.argv[2:]
help_text = subprocess.run([program, "serve", "--help"], capture_output=True, text=True, check=True).stdout
objects = {}
for name in files:
    with open(name, encoding="utf-8") as f:
        for o in yaml.load_all(f, Loader=Strict):
            objects[o["kind"]] = o
            if o["kind"] != "PodMonitor":  # an object of the Prometheus operator
                kubernetes_validate.validate(o, "1.34", strict=True)

pod = objects["Deployment"]["spec"]["template"]
container = pod["spec"]["containers"][0]
labels = pod["metadata"]["labels"]
for flag in container["args"]:
    if flag.startswith("--"):
        assert flag.split("=")[0] in help_text, flag
ports = {p["name"] for p in container["ports"]}
for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
    assert container[probe]["httpGet"]["port"] in ports
assert objects["Service"]["spec"]["ports"][0]["targetPort"] in ports
assert objects["Service"]["spec"]["selector"] == labels
assert objects["Deployment"]["spec"]["selector"]["matchLabels"] == labels
assert objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
assert objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == objects["Deployment"]["metadata"]["name"]
monitor = objects["PodMonitor"]["spec"]
assert monitor["selector"]["matchLabels"] == labels
endpoint = monitor["podMetricsEndpoints"][0]
assert endpoint["port"] in ports and endpoint["path"] == "/metrics"
secret = pod["spec"]["volumes"][0]["secret"]["secretName"]
assert endpoint["authorization"]["credentials"]["name"] == secret
assert objects["HorizontalPodAutoscaler"]["spec"]["metrics"][0]["pods"]["metric"]["name"] == "nanochat_queue_depth"
print(len(objects), "objects")
