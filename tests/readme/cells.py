"""Runs cells of a notebook, given as JSON on standard input, and prints what each showed, as JSON."""

import json
import sys

import nbformat
from nbclient import NotebookClient

notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in json.load(sys.stdin)])
NotebookClient(notebook, timeout=120).execute()
shown = []
for cell in notebook.cells:
    parts = []
    for output in cell.outputs:
        parts += [output["text"]] if "text" in output else output.get("data", {}).values()
    shown.append("".join(map(str, parts)))
print(json.dumps(shown))
