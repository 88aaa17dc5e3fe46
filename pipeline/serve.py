"""A model that answers photographs over HTTP: ``python -m pipeline.serve``."""

import sys

from pipeline.terminal.cli import main

DESCRIPTION = """\
Answer photographs over HTTP: which classes they show, by Ray Serve, in batches.

examples:
  python -m pipeline.serve                              the newest checkpoint of --output
  python -m pipeline.serve --model models:/dclip-shapes@best --port 8000
  python -m pipeline.serve --model RN101 --replicas 2 --allow-url https://host/photos/
  curl localhost:8000/predict -H 'Content-Type: application/json' -d @request.json
request.json is {"images": [{"base64": "..."}], "classes": ["dog", "cat"], "masks": false}.
POST /predict takes images as base64, or as URLs that begin as --allow-url says; classes are those
of the training if left out. GET /model says what answers, GET /health whether it does. What cannot
be used is answered by 4xx and one line that says why. Ctrl-C ends it, after what is under way."""

if __name__ == "__main__":
    sys.exit(main("serve"))
