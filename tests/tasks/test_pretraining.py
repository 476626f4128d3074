"""Training of the small denoiser: losses, labels, average, optimiser, resuming."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from ditf_probe.backbones.packing import pack_patches
from ditf_probe.backbones.spec import read_spec, tiny_spec
from ditf_probe.backbones.tiny import TinyDenoiser
from ditf_probe.data.images import ImagePoolsModule
from ditf_probe.errors import InputError
from ditf_probe.tasks.flow import as_signal, drop_labels, flow_loss, image_sheet, sample_images, sample_timesteps
from ditf_probe.tasks.optimiser import MuonAdamW, is_hidden_matrix, orthogonalise
from ditf_probe.tasks.pretraining import PretrainTask


def small(architecture: str = "dit", **options: str) -> TinyDenoiser:
    spec = tiny_spec(
        architecture, ["a", "b"], width=16, head_dim=8, blocks=2, double_blocks=1, image_size=16, **options
    )  # type: ignore[arg-type]
    return TinyDenoiser.untrained(spec)


def task(folder: Path, **options: object) -> PretrainTask:
    sizes = {"architecture": "dit", "width": 16, "head_dim": 8, "blocks": 2, "double_blocks": 0, "image_size": 16}
    steps = {"warmup_steps": 2, "total_steps": 20, "decay_steps": 5, "kept_tokens": {0: 8, 6: 16}, "sample_steps": 0}
    return PretrainTask(**{**sizes, **steps, "run_dir": str(folder), **options})  # type: ignore[arg-type]


def fit(
    folder: Path, steps: int, resume: bool = False, resident: bool = False, **options: object
) -> tuple[PretrainTask, Trainer]:
    checkpoint = ModelCheckpoint(folder / "checkpoints", save_last=True, save_top_k=0, every_n_train_steps=4)
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, logger=False, callbacks=[checkpoint],
        default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, val_check_interval=4, check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
    )  # fmt: skip
    module = task(folder, **options)
    data = ImagePoolsModule(
        None, folder / "cache", num_drawn=8, image_size=16, batch_size=4, num_val=4, resident=resident
    )
    trainer.fit(module, data, ckpt_path="last" if resume else None, weights_only=False)
    return module, trainer


@pytest.mark.parametrize("architecture", ["dit", "flux"])
@pytest.mark.parametrize("muon", [False, True])
def test_steps_on_one_batch_lower_its_loss(architecture: str, muon: bool) -> None:
    torch.manual_seed(0)
    model = small(architecture).train()
    model.zero_initialise()
    groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[muon and is_hidden_matrix(name, parameter)].append(parameter)
    optimiser = MuonAdamW([{"params": p, "muon": kind} for kind, p in groups.items()], lr=3e-3)
    clean, noise = torch.rand(4, 3, 16, 16) - 0.5, torch.randn(4, 3, 16, 16)
    losses = []
    for _ in range(12):
        labels, keep = torch.tensor([0, 1, 2, 2]), torch.arange(0, 16, 2)
        loss = flow_loss(model, clean, noise, torch.full((4,), 500.0), labels, keep)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx((noise - clean).square().mean().item(), rel=0.15)  # zero prediction at the start
    assert losses[-1] < 0.97 * losses[0]
    assert bool(groups[True]) is muon


def test_loss_against_a_loop() -> None:
    model = small()
    clean, noise = torch.rand(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
    timestep, labels = torch.tensor([0.0, 250.0]), torch.tensor([1, 2])
    noisy = torch.stack([clean[0], 0.75 * clean[1] + 0.25 * noise[1]])
    expected = (model(noisy, timestep, labels) - (noise - clean)).square().mean()
    torch.testing.assert_close(flow_loss(model, clean, noise, timestep, labels), expected)


@pytest.mark.parametrize("keep", [None, torch.tensor([0, 5, 6])])
def test_velocity_of_a_predicted_image(keep: torch.Tensor | None) -> None:
    velocity, image = small(), small(prediction="image")
    image.load_state_dict(velocity.state_dict())
    noisy, timestep, labels = torch.randn(3, 3, 16, 16), torch.tensor([20.0, 50.0, 800.0]), torch.tensor([0, 1, 2])
    clean = velocity.velocity_tokens(noisy, timestep, labels, keep)
    seen = pack_patches(noisy, 4) if keep is None else pack_patches(noisy, 4)[:, keep]
    found = image.velocity_tokens(noisy, timestep, labels, keep)
    for row, level in enumerate((0.05, 0.05, 0.8)):
        torch.testing.assert_close(found[row], (seen[row] - clean[row]) / level)


def test_euler_steps_of_an_exact_model_reach_the_image() -> None:
    target, noise = torch.rand(2, 3, 16, 16), torch.randn(2, 3, 16, 16)

    class Exact(TinyDenoiser):
        def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return (noisy - target) / (timestep / 1000)[:, None, None, None]

    result = sample_images(Exact(small().spec), torch.tensor([0, 1]), noise, steps=5)
    torch.testing.assert_close(result, target, atol=1e-5, rtol=0)


def test_labels_are_dropped_to_the_null_label() -> None:
    labels = torch.arange(4).repeat(500)
    dropped = drop_labels(labels, 9, 0.5)
    assert 0.4 < (dropped == 9).float().mean() < 0.6
    assert torch.equal(dropped[dropped != 9], labels[dropped != 9])
    assert torch.equal(drop_labels(labels, 9, 0.0), labels)


def test_timesteps_and_signal() -> None:
    levels = sample_timesteps(4000, 0.5, 1.0) / 1000
    assert levels.logit().mean() == pytest.approx(0.5, abs=0.06)
    assert as_signal(torch.tensor([[0, 255]], dtype=torch.uint8)).tolist() == [[-1.0, 1.0]]
    sheet = image_sheet(torch.stack([torch.full((3, 2, 2), v) for v in (-1.0, 0.0, 1.0, 5.0)]), columns=2)
    assert sheet[0].tolist() == [[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_orthogonalise() -> None:
    for shape in ((3, 8, 24), (3, 24, 8)):
        singular = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert singular.min() > 0.5
        assert singular.max() < 1.4


def test_adamw_equals_torch() -> None:
    ours, theirs = (torch.nn.Linear(4, 3) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    a = MuonAdamW([{"params": list(ours.parameters()), "muon": False}], lr=1e-2, weight_decay=0.1)
    b = torch.optim.AdamW(
        [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}],
        lr=1e-2, betas=(0.9, 0.95),
    )  # fmt: skip
    for _ in range(5):
        x = torch.randn(6, 4)
        for model, optimiser in ((ours, a), (theirs, b)):
            optimiser.zero_grad()
            model(x).square().sum().backward()
            optimiser.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_schedule_and_stages(tmp_path: Path) -> None:
    module = task(tmp_path)
    assert [module.rate(step) for step in (0, 1, 10, 15, 19, 20, 30)] == [0.5, 1.0, 1.0, 1.0, 0.2, 0.0, 0.0]
    assert [module.kept(step) for step in (0, 5, 6, 100)] == [8, 8, 16, 16]


@pytest.mark.parametrize("bad", [{"kept_tokens": {1: 8}}, {"kept_tokens": {0: 17}}, {"label_dropout": 1.5}])
def test_bad_arguments(bad: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        task(tmp_path, **bad)


def test_average_and_export(tmp_path: Path) -> None:
    module, _ = fit(tmp_path, 5, ema_decay=0.0)  # one step after the last checkpoint
    for trained, average in zip(module.denoiser.parameters(), module.ema.parameters(), strict=True):
        torch.testing.assert_close(average, trained.detach())
        assert not average.requires_grad
    facts = read_spec(tmp_path / "ditf_tiny.safetensors").training
    assert (facts["steps"], facts["images_seen"]) == (5, 20)
    loaded = TinyDenoiser.load(tmp_path / "ditf_tiny.safetensors")
    for name, value in module.ema.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.bfloat16().float())


def test_resuming_goes_on_where_the_checkpoint_was(tmp_path: Path) -> None:
    first, _ = fit(tmp_path, 7)  # checkpoint at step 4
    assert int(first.images_seen) == 28
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=False)
    assert saved["global_step"] == 4
    second, trainer = fit(tmp_path, 9, resume=True)
    assert trainer.global_step == 9
    assert int(second.images_seen) == 36
    optimiser = trainer.optimizers[0]
    assert optimiser.param_groups[0]["lr"] == pytest.approx(2e-3 * second.rate(9))
    steps = {state["step"] for state in optimiser.state.values() if "step" in state}
    assert steps == {9}
