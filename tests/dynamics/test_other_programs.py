"""Writers and callbacks against the real libraries; a test whose library is not installed says what it needs."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynamics.training import LOSS, data, expect_same, frozen_clock, mlp, train
from lipscope.claims.errors import ModelError, UsageError
from lipscope.claims.quantity import Reading
from lipscope.dynamics.quantities import scene
from lipscope.dynamics.store import open_run
from lipscope.dynamics.writers import tag

ROWS = [("upper", Reading("upper", 2.5, "computed")), ("identity", Reading("flow", -0.25, "measured", "fc.1"))]


@pytest.fixture(autouse=True)
def no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise ModelError("left out in this test")

    monkeypatch.setattr(scene, "Template", refuse)


def test_tags_name_the_series() -> None:
    assert [tag(*row) for row in ROWS] == ["lipscope/upper/upper", "lipscope/identity/flow/fc.1"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_scalars_at_the_optimizer_steps(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from lipscope.dynamics.writers.tensorboard import TensorBoardWriter

    alone = train(None)
    observed = train(tmp_path / "run", writers=[TensorBoardWriter(tmp_path / "events")])
    expect_same(alone, observed)
    events = EventAccumulator(str(tmp_path / "events"), size_guidance={"scalars": 0})
    events.Reload()
    with open_run(tmp_path / "run") as run:
        lower = run.series("lower")
        found = events.Scalars("lipscope/probe-lipschitz/lower")
        assert [e.step for e in found] == lower.step.tolist()
        assert [e.value for e in found] == pytest.approx(lower.value.tolist(), rel=1e-6)
        assert len(events.Tags()["scalars"]) == len(run.all_series())


def test_tensorboard_keeps_a_writer_of_the_user_open(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    from lipscope.dynamics.writers.tensorboard import TensorBoardWriter

    own = SummaryWriter(str(tmp_path))
    writer = TensorBoardWriter(own)
    writer.write(3, ROWS)
    writer.close()
    assert own.file_writer is not None
    own.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wandb_offline_run_holds_the_readings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    from lipscope.dynamics.writers.wandb import STEP, WandbWriter

    writer = WandbWriter(dir=str(tmp_path), project="test")
    assert writer._run.offline
    for step in (5, 7):
        writer.write(step, ROWS)
    summary = dict(writer._run.summary)
    assert (summary[STEP], summary["lipscope/upper/upper"], summary["lipscope/identity/flow/fc.1"]) == (7, 2.5, -0.25)
    writer.close()
    (stored,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    for _ in range(200):  # another process writes it
        if b"lipscope/identity/flow/fc.1" in stored.read_bytes():
            break
        time.sleep(0.05)
    assert b"lipscope/identity/flow/fc.1" in stored.read_bytes()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_mlflow_run_holds_the_readings(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow")
    from lipscope.dynamics.writers.mlflow import MLflowWriter

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        uri = (tmp_path / "store").as_uri()
        writer = MLflowWriter(tracking_uri=uri)
        for step in (5, 7):
            writer.write(step, [*ROWS, ("q", Reading("layer", math.inf, "computed", "a:b[c]"))])
        writer.close()
        client = mlflow.MlflowClient(tracking_uri=uri)
        history = client.get_metric_history(writer.run_id, "lipscope/identity/flow/fc.1")
        assert [(m.step, m.value) for m in history] == [(5, -0.25), (7, -0.25)]
        assert client.get_run(writer.run_id).info.status == "FINISHED"
        assert "lipscope/q/layer/a_b_c_" in client.get_run(writer.run_id).data.metrics


# ------------------------------------------------------------------------------------------------------- callbacks

OPTIONS: dict[str, Any] = {"loss": LOSS, "clock": frozen_clock}


def lightning_weights(folder: Path | None, clip: float | None = None) -> dict[str, Tensor]:
    """Weights after four steps of Lightning, of two batches each."""
    pl = pytest.importorskip("lightning.pytorch", reason="needs lightning")
    from lipscope.dynamics.callbacks.lightning import LipschitzCallback

    class Net(pl.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)  # type: ignore[no-any-return]

        def training_step(self, batch: Any, index: int) -> Tensor:
            return LOSS(self(batch[0]), batch[1])  # type: ignore[no-any-return]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    callbacks = [] if folder is None else [LipschitzCallback(data(), run=folder, **OPTIONS)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net()
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), batch_size=4, shuffle=True)
        trainer = pl.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=callbacks, accumulate_grad_batches=2, gradient_clip_val=clip,
        )  # fmt: skip
        trainer.fit(model, loader)
        return {**{k: v.clone() for k, v in model.state_dict().items()}, "random": torch.get_rng_state()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("clip", [None, 0.5])
def test_lightning_trains_the_same_and_every_step_is_seen(tmp_path: Path, clip: float | None) -> None:
    expect_same(lightning_weights(None, clip), lightning_weights(tmp_path, clip))
    with open_run(tmp_path) as run:
        assert run.steps.tolist() == [0, 1, 2, 3, 4]
        assert ("gradient_norm" in run.names()) == (clip is None)
        # Gradients that are clipped after the look at them are not taken for those of the step; its change is seen all the same.
        split, change = run.series("gradient", "", "identity").value, run.series("change", "", "identity").value
        assert len(change) == 4 and (change != 0).all() and (split != 0).all() == (clip is None)
        assert {"lower", "update_norm"} <= set(run.names())
        assert [e.message for e in run.events() if e.kind == "trouble" and "closure" not in e.message] == []
        assert run.sessions[-1].state == "finished"


def test_a_callback_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from lipscope.dynamics.callbacks import lightning, optional_class, transformers

    assert optional_class(("there_is_no_such_module", "fractions"), "Fraction").__name__ == "Fraction"
    assert optional_class(("there_is_no_such_module",), "Callback") is object
    for module, name in ((lightning, "lightning"), (transformers, "transformers")):
        monkeypatch.setattr(module, "_Base", object)
        with pytest.raises(UsageError, match=rf"pip install 'lipscope\[{name}\]'"):
            module.LipschitzCallback(data())


def transformers_weights(folder: Path | None, output: Path) -> dict[str, Tensor]:
    """Weights after four steps of the Hugging Face Trainer."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    pytest.importorskip("accelerate", reason="needs accelerate")
    from lipscope.dynamics.callbacks.transformers import LipschitzCallback

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.net(x)
            return {"loss": LOSS(logits, labels), "logits": logits}

    callbacks = [] if folder is None else [LipschitzCallback(data(), lambda m: m.net, run=folder, **OPTIONS)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net()
        rows = [{"x": x, "labels": y} for x, y in zip(*data(), strict=True)]
        settings = transformers.TrainingArguments(
            output_dir=str(output), max_steps=4, per_device_train_batch_size=8, use_cpu=True, report_to=[], seed=3,
            save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        transformers.Trainer(model=model, args=settings, train_dataset=rows, callbacks=callbacks).train()
        return {**{k: v.clone() for k, v in model.state_dict().items()}, "random": torch.get_rng_state()}


@pytest.mark.filterwarnings("ignore")
def test_the_hugging_face_trainer_trains_the_same_and_every_step_is_seen(tmp_path: Path) -> None:
    alone, observed = (transformers_weights(f, tmp_path / "out") for f in (None, tmp_path / "run"))
    expect_same(alone, observed)
    with open_run(tmp_path / "run") as run:
        assert run.steps.tolist() == [0, 1, 2, 3, 4]
        assert {"lower", "update_norm", "gradient_norm", "change"} <= set(run.names())
        assert [e.message for e in run.events() if e.kind == "trouble"] == []
        assert run.sessions[-1].state == "finished"
