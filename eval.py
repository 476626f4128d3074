"""Compare zero-shot and probed rows: `python eval.py test --config configs/quickstart.yaml --probe FOLDER`."""

from ditf_probe.cli import evaluate

if __name__ == "__main__":
    evaluate()
