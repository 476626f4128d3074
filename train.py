"""Train a probe or the tiny backbone: `python train.py fit --config configs/quickstart.yaml`."""

from ditf_probe.cli import train

if __name__ == "__main__":
    train()
