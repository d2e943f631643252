"""The one way in: every kind of source, weights, normalisation, and files that want to run code."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lipscope.claims.errors import ModelError, UnsupportedError, UsageError
from lipscope.network.load.load import list_operations, load
from lipscope.network.load.pt2_archive import load_program
from lipscope.network.load.torch_traced import quiet
from lipscope.rules.graph_value import evaluate_graph


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)).eval()


SHAPE = (2, 4, 4)


def check(loaded, model: nn.Module, transform=lambda x: x) -> None:
    """The graph equals the model, evaluated here in double precision."""
    x = torch.randn(3, *SHAPE, dtype=torch.float64)
    wanted = model.double()(transform(x)).detach().reshape(3, -1)
    found = evaluate_graph(loaded.graph, x)
    assert (found - wanted).abs().max() <= 1e-12 * wanted.abs().max()


class Evil:
    """Unpickled, it leaves a folder behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (os.mkdir, (str(self.trace),))


# ----------------------------------------------------------------------------------------------------- modules


def test_module():
    loaded = load(network(), SHAPE)
    check(loaded, network())
    assert loaded.dtype == "float64"
    assert loaded.graph.input_shapes == (SHAPE,)
    assert loaded.graph.source == "Sequential"
    assert len(loaded.agreement) == 8
    assert [o.status for o in list_operations(network(), SHAPE)] == ["supported"] * 4


def test_partial_agreement_is_a_warning():
    class Log(nn.Module):
        def forward(self, x):
            return x.log()

    loaded = load(Log().eval(), (9,))
    assert len(loaded.agreement) == 2
    assert "2 of 8 inputs" in loaded.warnings[0]
    assert load(network(), SHAPE).warnings == ()


def test_a_pattern_that_does_not_agree_is_left_out():
    class Rounded(nn.Module):
        def __init__(self, root: float) -> None:
            super().__init__()
            self.root = root

        def forward(self, x):
            return 0.5 * x * (1 + torch.erf(x * self.root))

    assert [node.kind for node in load(Rounded(0.5**0.5).eval(), (3,)).graph] == ["Input", "Elementwise"]
    loaded = load(Rounded(float(np.float32(0.5**0.5))).eval(), (3,))
    x = torch.linspace(-3, 3, 3, dtype=torch.float64)[None]
    wanted = Rounded(float(np.float32(0.5**0.5)))(x)
    assert (evaluate_graph(loaded.graph, x) - wanted).abs().max() < 1e-14


def test_module_needs_a_shape_and_eval_mode():
    with pytest.raises(UsageError, match="input_shape"):
        load(network())
    with pytest.raises(ModelError, match=r"model\.eval\(\)"):
        load(network().train(), SHAPE)


def test_weights_that_are_not_finite_are_refused_with_their_layer():
    model = network()
    with torch.no_grad():
        model[3].weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match="'3'"):
        load(model, SHAPE)


def test_random_models_are_refused():
    class Noisy(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x)

    with pytest.raises(UnsupportedError, match="dropout"):
        load(Noisy().eval(), (3,))


def test_other_things_are_refused():
    with pytest.raises(UsageError, match="expected a module"):
        load(3)
    with pytest.raises(ModelError, match="found nothing"):
        load("nowhere.h5")


# ------------------------------------------------------------------------------------------------ normalisation


@pytest.mark.parametrize(
    ("mean", "std"), [(0.3, None), (None, 0.5), (0.3, 2.0), ([0.1, 0.2], [0.5, 4.0]), ([0.25], [0.5])]
)
def test_normalisation_is_part_of_the_graph(mean, std):
    loaded = load(network(), SHAPE, mean=mean, std=std)
    shift = torch.tensor(0.0 if mean is None else mean, dtype=torch.float64).reshape(-1, 1, 1)
    scale = torch.tensor(1.0 if std is None else std, dtype=torch.float64).reshape(-1, 1, 1)
    check(loaded, network(), lambda x: (x - shift) / scale)
    kinds = [node.kind for node in loaded.graph]
    assert kinds[1 : 1 + (mean is not None) + (std is not None)] == [
        *["AddConstant"] * (mean is not None), *["DivConstant"] * (std is not None),
    ]  # fmt: skip


def test_agreement_is_in_raw_units():
    loaded = load(network(), SHAPE, mean=[100.0, 120.0], std=[50.0, 60.0])
    model = network().double()
    shift, scale = (torch.tensor(v, dtype=torch.float64).reshape(-1, 1, 1) for v in ([100.0, 120.0], [50.0, 60.0]))
    for x, y in loaded.agreement:
        wanted = model((torch.from_numpy(x).reshape(1, *SHAPE) - shift) / scale).detach().numpy()[0]
        assert np.abs(wanted - y).max() <= 1e-12 * np.abs(y).max()
    assert any(np.abs(x.reshape(2, -1) - [[100.0], [120.0]]).max() > 500 for x, _ in loaded.agreement)


@pytest.mark.parametrize(
    ("mean", "std", "match"),
    [(None, 0.0, "std > 0"), (None, [1.0, -1.0], "std > 0"), ([1.0, 2, 3], None, "3 numbers"), (np.nan, None, "finite"),
     ([1.0] * 4, None, None)],
)  # fmt: skip
def test_normalisations_that_do_not_fit(mean, std, match):
    if match is None:  # the last axis, as only that has four entries
        model = nn.Flatten().eval()
        graph = load(model, (2, 4), mean=mean).graph
        assert graph.nodes[1].value.shape == (1, 1, 4)
        return
    with pytest.raises(UsageError, match=match):
        load(network(), SHAPE, mean=mean, std=std)


def test_ambiguous_channels_are_refused():
    with pytest.raises(UsageError, match="both"):
        load(nn.Flatten().eval(), (3, 5, 3), mean=[1.0, 2.0, 3.0])


# ------------------------------------------------------------------------------------------------------ factories


@pytest.fixture
def factories(tmp_path, monkeypatch):
    """A module of factories in the current folder."""
    (tmp_path / "zoo_of_models").mkdir()
    (tmp_path / "zoo_of_models" / "small.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def net():\n    torch.manual_seed(3)\n"
        "    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)).eval()\n"
        "def training():\n    return net().train()\n"
        "def number():\n    return 3\n"
        "def broken():\n    raise RuntimeError('no data')\n"
        "constant = 3\nready = net()\n"
    )
    (tmp_path / "zoo_of_models" / "faulty.py").write_text("import not_installed_anywhere\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield tmp_path
    assert sys.path == before
    for name in [name for name in sys.modules if name.startswith("zoo_of_models")]:
        del sys.modules[name]


def test_factory_in_the_current_folder(factories):
    check(load("zoo_of_models.small:net", SHAPE), network())
    check(load("zoo_of_models.small:ready", SHAPE), network())
    assert len(list_operations("zoo_of_models.small:net", SHAPE)) == 4


@pytest.mark.parametrize(
    ("source", "match"),
    [("zoo_of_models.small:nothing", "no such name"), ("zoo_of_models.small:number", "got int"), ("no_such_zoo:net", "importable"),
     ("zoo_of_models.small:broken", "no data"), ("zoo_of_models.small:constant", "got int"),
     ("zoo_of_models.faulty:net", "not_installed_anywhere"), ("zoo_of_models.small:training", r"model\.eval")],
)  # fmt: skip
def test_factories_that_fail(factories, source, match):
    with pytest.raises(UsageError, match=match):
        load(source, SHAPE)


def test_factory_with_weights(factories):
    trained = network()
    with torch.no_grad():
        for p in trained.parameters():
            p.mul_(1.5)
    save_file(trained.state_dict(), "w.safetensors")
    torch.save(trained.state_dict(), "w.pt")
    torch.save({"epoch": 3, "state_dict": trained.state_dict()}, "w.pth")
    for name in ("w.safetensors", "w.pt", "w.pth"):
        check(load("zoo_of_models.small:net", SHAPE, weights=name), trained)
    untouched = network()
    check(load(untouched, SHAPE, weights="w.pt"), trained)
    check(load(untouched, SHAPE), network())


def test_weights_with_wrong_names_shapes_and_types(factories):
    state = network().state_dict()
    wrong = {("3.kernel" if key == "3.weight" else key): value for key, value in state.items()}
    save_file(wrong, "names.safetensors")
    with pytest.raises(ModelError, match=r"missing: 3\.weight; unexpected: 3\.kernel"):
        load("zoo_of_models.small:net", SHAPE, weights="names.safetensors")
    save_file({**state, "3.bias": torch.zeros(4)}, "shapes.safetensors")
    with pytest.raises(ModelError, match=r"3\.bias: expected \[3\], got \[4\]"):
        load("zoo_of_models.small:net", SHAPE, weights="shapes.safetensors")
    save_file({key: value.double() for key, value in state.items()}, "types.safetensors")
    with pytest.raises(ModelError, match="holds exactly"):
        load("zoo_of_models.small:net", SHAPE, weights="types.safetensors")
    Path("cut.safetensors").write_bytes(Path("names.safetensors").read_bytes()[:100])
    Path("cut.pt").write_bytes(b"PK\x03\x04 no archive")
    for name in ("cut.safetensors", "cut.pt", "missing.pt", "names.h5"):
        with pytest.raises(ModelError):
            load("zoo_of_models.small:net", SHAPE, weights=name)
    torch.save([1, 2], "list.pt")
    with pytest.raises(ModelError, match="state dict"):
        load("zoo_of_models.small:net", SHAPE, weights="list.pt")


def test_a_pickled_module_is_not_executed(factories):
    trace = factories / "trace"
    torch.save({"weight": Evil(trace)}, "evil.pt")
    torch.save(network(), "module.pt")
    for name in ("evil.pt", "module.pt"):
        with pytest.raises(ModelError, match="would run code"):
            load("zoo_of_models.small:net", SHAPE, weights=name)
        with pytest.raises(ModelError, match=r"torch\.export\.save"):
            load(name, SHAPE)
    assert not trace.exists()
    torch.load("evil.pt", weights_only=False)
    assert trace.exists(), "the planted pickle does nothing, so the test proves nothing"


def test_torchscript_is_refused_with_advice(tmp_path):
    path = tmp_path / "script.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("script/code/__torch__.py", "")
    with pytest.raises(ModelError, match="TorchScript"):
        load(path, SHAPE)
    with pytest.raises(ModelError, match="TorchScript"):
        load(network(), SHAPE, weights=path)


# ------------------------------------------------------------------------------------------------------ .pt2 files


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """An exported program with a dynamic batch axis."""
    path = tmp_path_factory.mktemp("pt2") / "model.pt2"
    with quiet():
        program = torch.export.export(
            network(), (torch.randn(2, *SHAPE),), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
        torch.export.save(program, path)
    return path


def rewritten(archive: Path, path: Path, change) -> Path:
    """A copy of an archive whose records went through `change(name inside, bytes)`; None leaves one out."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = change(name.split("/", 1)[1], old.read(name))
            if content is not None:
                new.writestr(name, content)
    return path


def edited(archive: Path, path: Path, edit) -> Path:
    """A copy of an archive whose program went through `edit(document)`."""

    def change(name: str, content: bytes) -> bytes:
        if not name.startswith("models/"):
            return content
        document = json.loads(content)
        edit(document)
        return json.dumps(document).encode()

    return rewritten(archive, path, change)


def test_pt2(archive):
    loaded = load(archive)
    assert loaded.dtype == "float32"
    assert loaded.graph.source == "model.pt2"
    assert loaded.graph.input_shapes == (SHAPE,)
    check(loaded, network())
    assert [node.name for node in loaded.graph] == ["input", "0", "1", "2", "3"]
    assert [o.operator for o in list_operations(archive)] == ["conv2d", "relu", "flatten", "linear"]
    with pytest.raises(UsageError, match="no weights"):
        load(archive, weights="w.pt")


def test_pt2_with_constants_and_writes(tmp_path):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0]), persistent=False)

        def forward(self, x):
            y = torch.relu_(x * self.scale + torch.tensor(0.5))
            y[:, 0] = 1.0
            return {"y": y}

    with quiet():
        torch.export.save(torch.export.export(Model().eval(), (torch.randn(1, 3),)), tmp_path / "m.pt2")
    graph = load(tmp_path / "m.pt2").graph
    found = evaluate_graph(graph, torch.tensor([[5.0, 1.0, -2.0]], dtype=torch.float64))
    assert found.tolist() == [[1.0, 2.5, 0.0]]


def test_sample_inputs_are_not_unpickled(archive, tmp_path, monkeypatch):
    trace = tmp_path / "trace"
    buffer = io.BytesIO()
    torch.save(((Evil(trace),), {}), buffer)
    evil = rewritten(archive, tmp_path / "evil.pt2", lambda n, b: buffer.getvalue() if "sample_inputs" in n else b)
    check(load(evil), network())
    assert not trace.exists()
    monkeypatch.setattr(
        logging.getLogger("torch._export.serde.serialize"), "disabled", True
    )  # its message is malformed
    with quiet():
        torch.export.load(evil)
    assert trace.exists(), "the planted pickle does nothing, so the test proves nothing"


@pytest.mark.parametrize("place", ["weights", "constants"])
def test_pickled_weights_and_constants_are_refused(archive, tmp_path, place):
    trace = tmp_path / "trace"
    evil = pickle.dumps(Evil(trace))

    def change(name: str, content: bytes) -> bytes:
        if name == f"data/{place}/model_{place}_config.json":
            config = json.loads(content)
            prefix = "weight_9" if place == "weights" else "opaque_obj_0"
            config["config"]["planted"] = {
                "path_name": prefix,
                "is_param": False,
                "use_pickle": True,
                "tensor_meta": None,
            }
            return json.dumps(config).encode()
        return content

    path = rewritten(archive, tmp_path / "evil.pt2", change)
    with zipfile.ZipFile(path, "a") as more:
        more.writestr(f"model/data/{place}/{'weight_9' if place == 'weights' else 'opaque_obj_0'}", evil)
    with pytest.raises(ModelError, match=r"pickle|run code"):
        load(path)
    assert not trace.exists()


def test_a_legacy_record_of_weights_is_refused_unless_plain(archive, tmp_path):
    trace = tmp_path / "trace"
    buffer = io.BytesIO()
    torch.save({"0.weight": Evil(trace)}, buffer)
    path = shutil.copy(archive, tmp_path / "evil.pt2")
    with zipfile.ZipFile(path) as old:
        root = old.namelist()[0].split("/")[0]
    with zipfile.ZipFile(path, "a") as more:
        more.writestr(f"{root}/data/weights/model.pt", buffer.getvalue())
    with pytest.raises(ModelError, match="run code"):
        load(path)
    assert not trace.exists()


def test_compiled_code_is_refused(archive, tmp_path):
    path = shutil.copy(archive, tmp_path / "evil.pt2")
    with zipfile.ZipFile(path) as old:
        root = old.namelist()[0].split("/")[0]
    with zipfile.ZipFile(path, "a") as more:
        more.writestr(f"{root}/data/aotinductor/model/x.so", b"\x7fELF")
    with pytest.raises(ModelError, match="compiled code"):
        load(path)


def test_guards_are_not_executed(archive, tmp_path):
    trace = tmp_path / "trace"

    def edit(document: dict) -> None:
        document["guards_code"] = [f"open({str(trace)!r}, 'w')"]

    path = edited(archive, tmp_path / "evil.pt2", edit)
    check(load(path), network())
    assert load_program(path)._guards_code == []
    assert not trace.exists()


@pytest.mark.parametrize(
    "expression", ["open({!r}, 'w')", "Symbol('s0').__class__", "[Integer(1) for x in (1,)]", "eval('1')"]
)
def test_shape_expressions_are_not_executed(archive, tmp_path, expression):
    trace = tmp_path / "trace"

    def edit(document: dict) -> None:
        found = []

        def visit(tree) -> None:
            if isinstance(tree, dict):
                if "expr_str" in tree:
                    tree["expr_str"] = expression.format(str(trace))
                    found.append(tree)
                for value in tree.values():
                    visit(value)
            elif isinstance(tree, list):
                for value in tree:
                    visit(value)

        visit(document)
        assert found, "the program has no shape expression to plant one in"

    with pytest.raises(ModelError, match="arithmetic of shapes"):
        load(edited(archive, tmp_path / "evil.pt2", edit))
    assert not trace.exists()


@pytest.mark.parametrize(
    "target",
    ["torch.hub.load", "torch.load", "torch.serialization.load", "torch.ops.load_library", "_operator.attrgetter", "math.sqrt",
     "#torch.ops.x:y", "torch.ops.custom.op.default", "torch.ops.aten.relu.default.__class__"],
)  # fmt: skip
def test_foreign_operations_are_not_called(archive, tmp_path, target):
    def edit(document: dict) -> None:
        document["graph_module"]["graph"]["nodes"][1]["target"] = target

    with pytest.raises(ModelError, match=r"torch\.ops\.aten"):
        load(edited(archive, tmp_path / "evil.pt2", edit))


def test_names_that_could_become_code_are_refused(archive, tmp_path):
    def edit(document: dict) -> None:
        for spec in document["graph_module"]["signature"]["input_specs"]:
            if "parameter" in spec:
                spec["parameter"]["parameter_name"] = '0.weight"), print("x'

    with pytest.raises(ModelError, match="plain names"):
        load(edited(archive, tmp_path / "evil.pt2", edit))


def test_structures_that_name_modules_are_refused(archive, tmp_path):
    def edit(document: dict) -> None:
        text = json.dumps(document).replace("builtins.tuple", "collections.defaultdict")
        document.clear()
        document.update(json.loads(text))

    with pytest.raises(ModelError, match="tuples, lists and dicts"):
        load(edited(archive, tmp_path / "evil.pt2", edit))


def test_files_that_are_no_programs(archive, tmp_path):
    (tmp_path / "text.pt2").write_text("hello")
    (tmp_path / "cut.pt2").write_bytes(archive.read_bytes()[:-200])
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as other:
        other.writestr("a/b", "c")
    rewritten(archive, tmp_path / "empty.pt2", lambda n, b: None if n.startswith("models/") else b)
    rewritten(archive, tmp_path / "unweighted.pt2", lambda n, b: None if n == "data/weights/weight_0" else b)
    rewritten(archive, tmp_path / "short.pt2", lambda n, b: b[:8] if n == "data/weights/weight_0" else b)
    rewritten(archive, tmp_path / "garbled.pt2", lambda n, b: b[:-9] if n.startswith("models/") else b)
    for name in ("text", "cut", "other", "empty", "unweighted", "short", "garbled", "missing"):
        with pytest.raises(ModelError):
            load(tmp_path / f"{name}.pt2")


# ---------------------------------------------------------------------------------------------------------- ONNX


def test_onnx(tmp_path):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"], name="dense", transB=1)], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])], [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    loaded = load(path, mean=1.0)
    assert loaded.graph.source == "m.onnx"
    assert (loaded.dtype, len(loaded.agreement)) == ("float32", 8)
    found = evaluate_graph(loaded.graph, torch.ones(1, 3, dtype=torch.float64) * 2)
    assert found.tolist() == [[3.0, 12.0]]
    assert [o.operator for o in list_operations(path)] == ["Gemm"]
    with pytest.raises(UsageError, match="no weights"):
        load(path, weights="w.pt")
