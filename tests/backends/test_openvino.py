"""OpenVINO in place of PyTorch: the same images, what it refuses, and when `auto` takes it; networks in 8-bit integers."""

from __future__ import annotations

import copy
import json
import pickle
import resource
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FAMILIES, HALO, Run, small_model
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from comdefend_cli import Purifier, Settings
from comdefend_cli.backends import openvino, select
from comdefend_cli.backends.export import make_images
from comdefend_cli.backends.openvino import OpenVINONetworks, serialize
from comdefend_cli.backends.select import resolve_backend
from comdefend_cli.errors import UsageError, WeightsError
from comdefend_cli.evaluate.defences.catalogue import make_defence
from comdefend_cli.network.metrics import mean_psnr
from comdefend_cli.network.registry import load_weights
from comdefend_cli.network.weight_file import FORMAT, Header, Quantized, Weights, save_weights
from comdefend_cli.runtime import extras
from comdefend_cli.runtime.tensor_files import read_metadata

pytest.importorskip("openvino")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photograph(astronaut: np.ndarray) -> torch.Tensor:
    """A crop of a photograph, uint8 (1, 3, 60, 75)."""
    return torch.from_numpy(astronaut[40:100, 180:255].copy()).permute(2, 0, 1)[None]


def loaded(channels: int = 3, quantized: Quantized | None = None, family: str = "paper") -> Weights:
    model = small_model(channels, family=family)
    return Weights("small", "", Header(model.architecture), model, quantized)


def purifier(precision: str, backend: str = "openvino", settings: Settings | None = None, **more: object) -> Purifier:
    return Purifier.from_weights([loaded(**more)], device="cpu", precision=precision, backend=backend, settings=settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_openvino_in_float32_is_pytorch_within_a_few_roundings(photograph: torch.Tensor, channels: int, family: str) -> None:
    """In float32, both families, grey and colour, batch and tiles, nearly all levels are PyTorch's."""
    x = photograph[:, :channels, :59].repeat(2, 1, 1, 1)
    ours = purifier("float32", settings=Settings(tile=41), channels=channels, family=family)
    assert (ours.backend, ours.precision) == ("openvino", "float32")
    assert mean_psnr(ours(x), purifier("float32", "torch", channels=channels, family=family)(x)) > 55


@pytest.fixture(scope="module")
def compiled() -> dict[str, OpenVINONetworks]:
    """The small networks of each family, compiled once."""
    return {family: OpenVINONetworks(small_model(family=family), "float32") for family in FAMILIES}


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 25), st.integers(1, 25), st.integers(1, 2), st.sampled_from(FAMILIES))
@example(1, 1, 1, "residual-2")
@example(1, 1, 2, "residual-4")
@example(5, 7, 1, "residual-4")
@example(8, 16, 1, "residual-4")
def test_the_graph_takes_images_of_any_size(
    compiled: dict[str, OpenVINONetworks], height: int, width: int, count: int, family: str
) -> None:
    """From 1x1 up, the squares of an image whose sides are no multiples are continued, and cut off, as PyTorch's are."""
    x = torch.rand((count, 3, height, width), generator=torch.Generator().manual_seed(100 * height + width))
    model = small_model(family=family)
    near = model.com(x).abs() < 1e-4  # Where a rounding may fall to the other side, the images part.
    if not bool(near.any()):
        assert float((compiled[family](x) - model(x)).abs().max()) < 1e-4
    assert compiled[family](x).shape == x.shape


@pytest.mark.parametrize("family", FAMILIES)
def test_the_graph_is_made_of_what_weight_files_may_hold(family: str) -> None:
    """A graph in a weight file is refused for other operations, so those that the networks are built of are all allowed."""
    read = openvino.read_int8(serialize(openvino.build_graph(small_model(1, family=family))), 1)
    assert {operation.get_type_name() for operation in read.get_ops()} <= openvino._OPERATIONS


@pytest.mark.slow
def test_images_of_many_sizes_take_no_more_and_more_memory() -> None:
    """Kernels of sizes seen before are let go: after a hundred sizes, three hundred others add little. Left alone, they add 100 MB."""
    networks = OpenVINONetworks(small_model(family="residual-2"), "float32")
    sizes = [(1 + index % 4, 3, 16 + 2 * (index % 10), 16 + 2 * (index // 40)) for index in range(400)]
    held = []
    for index, size in enumerate(sizes):
        networks(torch.rand(size))
        if index in (100, 399):
            held.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6)
    assert held[1] - held[0] < 60


def test_tiles_of_very_large_images_are_smaller(monkeypatch: pytest.MonkeyPatch, photograph: torch.Tensor) -> None:
    """An image that takes much memory itself goes through in tiles whose activations take less; the pixels stay what they are."""
    ours = purifier("float32")
    whole = ours(photograph)
    shapes: list[tuple[int, ...]] = []
    monkeypatch.setattr(openvino, "_LARGE", photograph[0, 0].numel() - 1)
    monkeypatch.setattr(openvino, "_LARGE_TILE", 15)
    engine = ours.engines[3]
    ours.engines[3] = type(
        "Spy", (), {"choose_tile": engine.choose_tile, "__call__": lambda self, x: shapes.append(tuple(x.shape)) or engine(x)}
    )()
    assert mean_psnr(ours(photograph), whole) > 55
    assert max(max(shape[2:]) for shape in shapes) <= 15 + 2 * HALO < max(photograph.shape[2:])


def test_the_shipped_weights_in_bfloat16(photograph: torch.Tensor) -> None:
    """With the shipped weights, in bfloat16 where the CPU multiplies it, at least 35 dB to PyTorch's float32."""
    ours = Purifier.from_pretrained(device="cpu", precision="bfloat16", backend="openvino")
    assert mean_psnr(ours(photograph), Purifier.from_pretrained(device="cpu", precision="float32")(photograph)) >= 35


def test_grey_images_go_through_networks_for_colour(photograph: torch.Tensor) -> None:
    """A grey image without grey networks comes back as grey, as with PyTorch."""
    x = photograph[:, :1]
    assert mean_psnr(purifier("float32")(x), purifier("float32", "torch")(x)) > 55


def test_gradients_and_noise_are_refused(photograph: torch.Tensor) -> None:
    """Neither is silently left out: both are errors of usage that name the other backend."""
    with pytest.raises(UsageError, match="torch"):
        purifier("float32")((photograph / 255).requires_grad_())
    with pytest.raises(UsageError, match="torch"):
        purifier("float32", settings=Settings(noise_std=1.0))
    noisy = purifier("float32")
    noisy.settings = Settings(noise_std=1.0)
    with pytest.raises(UsageError, match="torch"):
        noisy(photograph)


def test_the_code_stays_with_pytorch(photograph: torch.Tensor) -> None:
    """`code` is PyTorch's, whatever computes the image."""
    assert torch.equal(purifier("float32").code(photograph), purifier("float32", "torch").code(photograph))


def test_copies_and_pickles_compute_the_same(photograph: torch.Tensor) -> None:
    """A compiled purifier can be copied and sent to another process."""
    ours = purifier("float32")
    expected = ours(photograph)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(twin(photograph), expected)


def test_engines_go_where_the_module_gets_other_weights_or_another_place(photograph: torch.Tensor) -> None:
    """Other weights and another device are PyTorch's; staying on the CPU changes nothing."""
    ours = purifier("float32").cpu()
    assert ours.backend == "openvino"
    other = Purifier(small_model(seed=1))
    ours.load_state_dict(other.state_dict())
    assert ours.backend == "torch"
    assert torch.equal(ours(photograph), other(photograph))
    assert purifier("float32").to("meta").backend == "torch"


def resolved(name: str = "auto", precision: str = "auto", device: str = "cpu", noisy: bool = False, quantized: bool = False) -> str:
    return resolve_backend(name, torch.device(device), precision, noisy=noisy, quantized=quantized)


def test_auto_takes_what_is_installed_and_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO on a CPU, but for float32 that is asked for; PyTorch on GPUs, with noise on the code, and where OpenVINO is absent."""
    monkeypatch.setattr(select, "cpu_has_bfloat16", lambda: True)
    assert resolved() == resolved(precision="bfloat16") == resolved(quantized=True) == "openvino"
    assert resolved(precision="float32") == resolved(noisy=True) == resolved(device="cuda") == resolved("torch") == "torch"
    monkeypatch.setattr(select, "cpu_has_bfloat16", lambda: False)
    assert (resolved(), resolved(quantized=True), resolved(precision="bfloat16", quantized=True)) == ("openvino", "openvino", "torch")
    squares = resolve_backend("auto", torch.device("cpu"), "auto", noisy=False, quantized=False, paper=False)
    assert squares == "torch"  # Hardly faster by OpenVINO in float32.
    for absent in (None, ModuleSpec("openvino", None)):  # The second is what a folder of that name looks like.
        monkeypatch.setattr(extras, "find_spec", lambda name, absent=absent: absent)
        assert resolved(quantized=True) == "torch"


def test_auto_takes_triton_for_the_paper_s_networks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU that could run it; networks that see squares go through PyTorch there, unless Triton is asked for."""
    monkeypatch.setattr(select, "_has_tensor_cores", lambda device, precision: True)
    monkeypatch.setattr(select, "find_triton_problem", lambda device: None)
    monkeypatch.setattr(select, "cpu_has_bfloat16", lambda: True)

    def choose(name: str, device: str, paper: bool) -> str:
        return resolve_backend(name, torch.device(device), "auto", noisy=False, quantized=False, paper=paper)

    assert (choose("auto", "cuda", True), choose("auto", "cuda", False), choose("triton", "cuda", False)) == ("triton", "torch", "triton")
    assert (choose("auto", "cpu", True), choose("auto", "cpu", False)) == ("openvino", "openvino")


def test_what_a_backend_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown names, a GPU, noise, float16 and absent int8 networks are errors of usage; an absent OpenVINO names its extra."""
    for name, more in (("tpu", {}), ("openvino", {"device": "cuda"}), ("openvino", {"noisy": True}), ("torch", {"precision": "int8"})):
        with pytest.raises(UsageError):
            resolved(name, **more)  # type: ignore[arg-type]
    for precision in ("float16", "int8"):
        with pytest.raises(UsageError):
            OpenVINONetworks(small_model(), precision)
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(UsageError, match=r"comdefend-cli\[openvino\]"):
        resolved("openvino")


def test_the_command_takes_a_backend(run: Run, small_weights: Path, photograph: torch.Tensor, tmp_path: Path) -> None:
    """`comdefend purify --backend openvino` writes nearly the image of `--backend torch`, and its record says so."""
    Image.fromarray(photograph[0].permute(1, 2, 0).numpy()).save(tmp_path / "in.png")
    made = {}
    for name in ("torch", "openvino"):
        options = ["--weights", small_weights, "--precision", "float32", "--backend", name, "--json", "--device", "cpu"]
        done = run("purify", tmp_path / "in.png", tmp_path / f"{name}.png", *options)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["backend"] == name
        made[name] = torch.from_numpy(np.array(Image.open(tmp_path / f"{name}.png"))).permute(2, 0, 1)[None]
    assert mean_psnr(made["torch"], made["openvino"]) > 55


def test_a_defence_with_openvino_says_so_and_offers_the_identity_alone(small_weights: Path, photograph: torch.Tensor) -> None:
    """Its name and settings tell it from PyTorch's, and an attacker that knows it gets no gradient but the identity."""
    defence = make_defence(f"{small_weights}:backend=openvino", device="cpu", precision="float32")
    plain = make_defence(str(small_weights), device="cpu", precision="float32")
    assert defence.name.endswith(":backend=openvino")
    assert defence.settings["backend"] == "openvino"
    assert defence.gradients == ("identity",)
    assert "straight-through" in plain.gradients
    assert "backend" not in plain.settings
    x = photograph / 255
    assert float((defence(x) - plain(x)).abs().mean()) < 1e-3


#: Two defences as `comdefend evaluate` makes them, gone in the order in which they came; then the signals that a process gets.
SIGNALS = """
import gc, signal, sys
import torch
from torch.utils.data import DataLoader
from comdefend_cli.evaluate.defences.catalogue import make_defence
x = torch.rand(2, 3, 20, 20)
defences = [make_defence(f"{sys.argv[1]}:backend=openvino{more}", device="cpu", precision="float32") for more in ("", ",input-noise=8")]
for defence in defences:
    defence(x)
del defence
while defences:
    del defences[0]
    gc.collect()
assert len(list(DataLoader(list(x), num_workers=1))) == 2
signal.signal(signal.SIGINT, lambda number, frame: print("handled"))
signal.raise_signal(signal.SIGINT)
"""


def test_signals_are_handled_after_openvino_s_networks_are_gone(small_weights: Path) -> None:
    """The end of a DataLoader's worker, and Ctrl-C, reach Python's handlers, where they ended the process."""
    done = subprocess.run([sys.executable, "-c", SIGNALS, str(small_weights)], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


@pytest.mark.slow
def test_an_evaluation_in_which_all_the_other_libraries_work_too(
    run: Run, small_weights: Path, astronaut: np.ndarray, tmp_path: Path
) -> None:
    """In one process, attacks and defences of foolbox, ART, scikit-image, SciPy and PyTorch compute before OpenVINO, and between."""
    for index in range(4):
        path = tmp_path / "data" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(astronaut[60 * index : 60 * index + 32, 200:232]).save(path)
    classifier = "import torch\ndef make():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 2))\n"
    (tmp_path / "mine.py").write_text(classifier)
    defences = (
        f"none tv jpeg median {small_weights} {small_weights}:backend=openvino {small_weights}:backend=openvino,samples=2,input-noise=8"
    )
    options = ["--attacks", "fgsm,deepfool,cw,pgd,square", "--steps", 2, "--queries", 4, "--epsilons", 8, "--precision", "float32"]
    done = run(
        *("evaluate", "--data", "data", "--classifier", "mine:make", "--defences", defences, *options, "--json", "--out", "found"),
        cwd=tmp_path,
        PYTHONPATH=str(Path(__file__).parent.parent.parent),
        PYTHONFAULTHANDLER="1",
    )
    assert done.returncode == 0, done.stderr
    threats = {cell["threat"] for cell in json.loads(done.stdout)["cells"] if "backend=openvino" in cell["defence"]}
    assert threats == {"clean", "grey-box", "adaptive", "black-box"}


# Networks in 8-bit integers.


def in_integers(family: str = "paper") -> Quantized:
    """The small networks in 8-bit integers, as `comdefend quantize` makes them."""
    pytest.importorskip("nncf")
    from comdefend_cli.backends.quantize import quantize

    return quantize(small_model(family=family), torch.cat([image[:, :, :37, :37] for image in make_images(3)]))


@pytest.fixture(scope="module")
def quantized() -> Quantized:
    """Those of the paper's family."""
    return in_integers()


@pytest.mark.parametrize("family", FAMILIES)
def test_int8_resembles_float32_and_is_not_it(quantized: Quantized, photograph: torch.Tensor, family: str) -> None:
    """The random networks of the tests, whose codes flip easily, still give a similar image, in integers, at odd sizes too."""
    made = quantized if family == "paper" else in_integers(family)
    ours = purifier("auto", quantized=made, family=family)
    assert ours.how == "int8 with openvino"
    x = photograph[:, :, :59] / 255
    others = purifier("float32", "torch", family=family), Purifier(small_model(seed=1, family=family))
    near, far = (mean_psnr((ours(x) * 255).round().byte(), (each(x) * 255).round().byte()) for each in others)
    assert far + 3 < near < 50
    assert b"FakeQuantize" in made.graph
    for side in (1, 5):
        assert ours(x[:, :, :side, : side + 2]).shape == (1, 3, side, side + 2)


def test_a_weight_file_keeps_int8_networks_beside_the_others(quantized: Quantized, tmp_path: Path, photograph: torch.Tensor) -> None:
    """Saved and loaded they are the same bytes; with PyTorch the file computes what it did without them; a half of them is damage."""
    save_weights(tmp_path / "q.safetensors", small_model(), {}, quantized=quantized)
    found = load_weights(str(tmp_path / "q.safetensors"))
    assert found.quantized == quantized
    plain = Purifier.from_weights([found], device="cpu", precision="float32")
    assert torch.equal(plain(photograph), purifier("float32", "torch")(photograph))
    from safetensors.torch import load, save

    data = (tmp_path / "q.safetensors").read_bytes()
    fields = {FORMAT.key: json.dumps({k: v for k, v in read_metadata(data, FORMAT.key).items() if k != "sha256"})}
    halved = {name: tensor for name, tensor in load(data).items() if name != "int8.constants"}
    (tmp_path / "half.safetensors").write_bytes(save(halved, fields))
    with pytest.raises(WeightsError, match="int8"):
        load_weights(str(tmp_path / "half.safetensors"))


def test_int8_networks_from_outside_are_refused_where_they_are_something_else(
    quantized: Quantized, run: Run, photograph: torch.Tensor, tmp_path: Path
) -> None:
    """Damage, a graph of another library (which may name files), other operations and other shapes are one line each, and no image."""
    onnx = pytest.importorskip("onnx")
    ov, op = pytest.importorskip("openvino"), pytest.importorskip("openvino.opset13")
    (tmp_path / "secret.bin").write_bytes(bytes(12))
    outside = onnx.TensorProto(name="c", data_type=onnx.TensorProto.FLOAT, dims=[1, 3, 1, 1], data_location=onnx.TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value=str(tmp_path / "secret.bin"))
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 3, "H", "W"]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "c"], ["y"])], "g", ends[:1], ends[1:], [outside])
    foreign = Quantized(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]).SerializeToString(), b"none")
    x = op.parameter([-1, 3, -1, -1], np.float32)
    spaced = serialize(ov.Model([op.result(op.interpolate(x, [4, 4], "nearest", "sizes", axes=[2, 3]))], [x], "other"))
    x = op.parameter([-1, 1, -1, -1], np.float32)
    narrow = serialize(ov.Model([op.result(op.sigmoid(x))], [x], "narrow"))
    for bad in (
        Quantized(b"garbage", b"none"),
        Quantized(b"<?xml", b"none"),
        foreign,
        spaced,
        narrow,
        Quantized(quantized.graph, b"short"),
    ):
        with pytest.raises(WeightsError, match="int8 networks"):
            purifier("auto", quantized=bad)(photograph)
    save_weights(tmp_path / "bad.safetensors", small_model(), {}, quantized=foreign)
    Image.fromarray(photograph[0].permute(1, 2, 0).numpy()).save(tmp_path / "in.png")
    for command in (
        ["purify", tmp_path / "in.png", tmp_path / "out.png", "--device", "cpu", "--backend", "auto", "--weights"],
        ["weights", "verify"],
    ):
        done = run(*command, tmp_path / "bad.safetensors")
        assert done.returncode == 1
        assert b"int8 networks" in done.stderr
        assert b"Traceback" not in done.stderr
    assert not (tmp_path / "out.png").exists()


@pytest.mark.slow
def test_the_quantize_command(run: Run, small_weights: Path, astronaut: np.ndarray, tmp_path: Path) -> None:
    """`comdefend quantize` makes a weight file that `purify` computes in integers by default, and never replaces one unasked."""
    pytest.importorskip("nncf")
    (tmp_path / "clean").mkdir()
    for index in range(3):
        Image.fromarray(astronaut[100 * index : 100 * index + 48, 100:160]).save(tmp_path / "clean" / f"{index}.png")
    options = ["--data", tmp_path / "clean", "--weights", small_weights, "--out", tmp_path / "q.safetensors", "--pictures", 4]
    done = run("quantize", *options)
    assert done.returncode == 0, done.stderr
    assert load_weights(str(tmp_path / "q.safetensors")).header.training["quantized"]["pictures"] == 4
    assert run("quantize", *options).returncode == 2
    options = ["--weights", tmp_path / "q.safetensors", "--backend", "auto", "--device", "cpu", "--json"]
    record = run("purify", tmp_path / "clean" / "0.png", tmp_path / "out.png", *options)
    assert json.loads(record.stdout)["precision"] == "int8", record.stderr


@pytest.mark.parametrize("command", ["purify", "quantize", "export"])
def test_nothing_is_reported_to_the_makers(run: Run, small_weights: Path, photograph: torch.Tensor, tmp_path: Path, command: str) -> None:
    """OpenVINO, NNCF and ONNX Runtime keep a number of the user and counts of use in the home folder, and send them: neither is done."""
    pytest.importorskip("nncf" if command == "quantize" else "onnxruntime")
    home, images = tmp_path / "home", tmp_path / "images"
    home.mkdir()
    images.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(photograph[0].permute(1, 2, 0).numpy()).save(images / name)
    if command == "purify":
        options = [images / "a.png", tmp_path / "out.png", "--device", "cpu", "--backend", "openvino"]
    elif command == "export":
        options = [tmp_path / "out.onnx", "--format", "onnx"]
    else:
        options = ["--data", images, "--out", tmp_path / "q.safetensors", "--pictures", 1]
    done = run(command, *options, "--weights", small_weights, HOME=str(home), XDG_CACHE_HOME=None, ORT_DISABLE_TELEMETRY=None)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert not (home / "intel").exists() and not (home / ".cache" / "Microsoft").exists()
