"""`triton`: a model repository that Triton's own message and Triton itself accept, and that answers as PyTorch does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import yaml

from ropevit_export import cli
from ropevit_export.bundle import golden, manifest
from ropevit_export.models.zoo import DIGITS
from ropevit_export.parity.samples import PHOTOS
from ropevit_export.verbs.triton import config, repository
from tests import triton_server

NAME = f"shallow_{DIGITS.name}-any"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One graph for two sizes, and batches."""
    path = tmp_path_factory.mktemp("triton") / "digits"
    command = ["--model", f"shallow_{DIGITS.name}", "--rope", "dynamic", "--res", "32,48", "--batch", "1:4:8"]
    assert cli.run([*command, "--weights", "random", "--engine", "none", "-q", "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def written(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repositories")
    labels = folder / "labels.txt"
    labels.write_text("".join(f"digit {index}\n" for index in range(10)))
    out = folder / "cpu"
    assert cli.run(["triton", str(digits), "--out", str(out), "--device", "cpu", "--labels", str(labels)]) == 0
    return out


def test_text_is_protobufs() -> None:
    message: dict[str, config.Value] = {
        "name": 'a "b"\n', "kind": config.Name("KIND_CPU"), "on": True, "dims": [3, -1], "step": [{"a": 1}, {"a": 2}],
    }  # fmt: skip
    assert config.text(message) == (
        'name: "a \\"b\\"\\n"\nkind: KIND_CPU\non: true\ndims: 3\ndims: -1\nstep {\n  a: 1\n}\nstep {\n  a: 2\n}\n'
    )


def test_every_size_has_a_model_a_preprocessing_and_an_ensemble(written: Path) -> None:
    names = {path.name for path in (written / "models").iterdir()}
    assert names == {NAME} | {f"{NAME}-{size}-{kind}" for size in (32, 48) for kind in ("prepare", "pictures")}
    assert (written / "models" / NAME / "labels.txt").read_text().splitlines()[9] == "digit 9"
    service = yaml.safe_load((written / "kserve.yaml").read_text())
    assert service["kind"] == "InferenceService"
    model = service["spec"]["predictor"]["model"]
    assert model["storageUri"] == "pvc://models/shallow-rope-mixed-deit-digits"
    assert "resources" not in model


@pytest.mark.parametrize("size", ["32", "48"])
def test_the_models_files_run_where_they_are(digits: Path, written: Path, size: str) -> None:
    """With their weights beside them, on the warm-up's picture."""
    folder = written / "models" / NAME
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    warm = np.frombuffer((folder / "warmup" / size).read_bytes(), np.float32).reshape(1, 3, int(size), int(size))
    images, expected = golden.read(digits / f"golden-{size}.safetensors", ["logits"])
    np.testing.assert_array_equal(warm[0], images[0])
    np.testing.assert_allclose(session.run(["logits"], {"image": warm})[0], expected["logits"][:1], atol=1e-4)


ALONE = """
import sys
sys.modules["ropevit_export"] = None
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import numpy as np
from PIL import Image
from ropevit_preprocess.images.preprocess import crop, normalise
from ropevit_preprocess.models.spec import Preprocess
from ropevit_preprocess.values import Resolution
import json
facts = json.loads(Path(sys.argv[1], "preprocess.json").read_text())
preprocess, size = Preprocess(**facts["preprocess"]), Resolution(**facts["size"])
np.save(sys.argv[3], normalise(crop(Image.open(sys.argv[2]), preprocess, size), preprocess))
"""


def test_the_copied_preprocessing_needs_nothing_of_this_package(digits: Path, written: Path, tmp_path: Path) -> None:
    """What the server's Python imports, and that it gives the golden file's pictures to the bit."""
    version, made = written / "models" / f"{NAME}-32-prepare" / "1", tmp_path / "made.npy"
    command = [sys.executable, "-c", ALONE, str(version), str(PHOTOS[0]), str(made)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(made), golden.read(digits / "golden-32.safetensors", ["logits"])[0][1])


def test_tritonclients_own_message_reads_every_configuration(digits: Path, written: Path, tmp_path: Path) -> None:
    grpc = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="pip install 'tritonclient[grpc]'")
    text_format = pytest.importorskip("google.protobuf.text_format")
    python = tmp_path / "python"
    assert cli.run(["triton", str(digits), "--out", str(python), "--backend", "python", "--instances", "2"]) == 0
    for folder in [*(written / "models").iterdir(), *(python / "models").iterdir()]:
        read: Any = text_format.Parse((folder / "config.pbtxt").read_text(), grpc.ModelConfig())
        assert read.name == folder.name
        assert read.max_batch_size == 8
        if read.platform == "ensemble":
            steps = [step.model_name for step in read.ensemble_scheduling.step]
            assert steps == [f"{folder.name.removesuffix('-pictures')}-prepare", NAME]
        elif not folder.name.endswith("-prepare"):
            assert list(read.dynamic_batching.preferred_batch_size) == [4, 8]
            assert [each.batch_size for each in read.model_warmup] == [1, 4, 1, 4]
            assert list(read.input[0].dims) == [3, -1, -1]
            assert list(read.model_warmup[2].inputs["image"].dims) == [3, 48, 48]
        else:
            assert list(read.output[0].dims) == [3, *[int(folder.name.split("-")[-2])] * 2]
    with pytest.raises(text_format.ParseError):
        text_format.Parse("max_batch: 8", grpc.ModelConfig())


def test_an_engine_for_several_sizes_is_one_model_with_its_profiles(digits: Path) -> None:
    listed = manifest.read(digits)
    sizes = ((32, 32), (48, 48))
    engine = listed.artifacts[0].model_copy(
        update={"kind": "tensorrt", "path": "model.engine", "resolutions": sizes, "profiles": sizes, "form": "portable"}
    )
    rtx = engine.model_copy(update={"kind": "tensorrt-rtx", "path": "model.rtx.engine"})
    with_engines = listed.model_copy(update={"artifacts": (*listed.artifacts, engine, rtx)})
    served, remarks = repository._served(with_engines, repository.Options())
    assert [each.name for each in served] == [NAME, f"{NAME}-tensorrt"]
    assert remarks == ["model.rtx.engine is left out: Triton has no backend for tensorrt-rtx"]
    group = repository._instances(engine, repository.Options(instances=2))
    assert group == {"count": 2, "kind": config.Name("KIND_GPU"), "profile": ["0", "1"]}


def test_a_static_batch_is_said(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["triton", str(bundle), "--out", str(tmp_path / "out")]) == 0
    assert "requests are not put together: export with --batch 1:8:32" in capsys.readouterr().err
    text = next((tmp_path / "out" / "models").glob("*-32/config.pbtxt")).read_text()
    assert "max_batch_size: 0" in text
    assert "dynamic_batching" not in text
    assert "dims: 1\n  dims: 3" in text


def test_what_no_server_can_run_is_refused(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").touch()
    assert cli.run(["triton", str(bundle), "--out", str(tmp_path / "there")]) == 1
    assert "exists: name another --out" in capsys.readouterr().err
    fed = tmp_path / "fed"
    fed.mkdir()
    listed = json.loads((bundle / "manifest.json").read_text()) | {"rope": "inputs"}
    (fed / "manifest.json").write_text(json.dumps(listed))
    assert cli.run(["triton", str(fed), "--out", str(tmp_path / "out")]) == 2
    assert "takes its positions as inputs" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fed", "there"]


needs_server = pytest.mark.skipif(
    triton_server.package() is None, reason="there is no Triton here: pip install nvidia-pytriton"
)


class Clients:
    """HTTP and gRPC clients, a thread each."""

    def __init__(self, server: triton_server.Server, count: int) -> None:
        import tritonclient.grpc as over_grpc
        import tritonclient.http as over_http

        self._kinds = [(over_http, server.http), (over_grpc, server.grpc)]
        self._count = count

    def run(self, model: str, inputs: list[tuple[str, str, np.ndarray]], each: int) -> Iterator[tuple[int, np.ndarray]]:
        """(which input, logits) of every request: `each` a client."""
        answers: list[tuple[int, np.ndarray]] = []
        errors: list[BaseException] = []

        def ask(number: int) -> None:
            module, address = self._kinds[number % 2]
            client = module.InferenceServerClient(address)
            try:
                for request in range(each):
                    index = (number + request) % len(inputs)
                    name, dtype, array = inputs[index]
                    given = module.InferInput(name, list(array.shape), dtype)
                    given.set_data_from_numpy(array)
                    answers.append((index, client.infer(model, [given]).as_numpy("logits")))
            except BaseException as error:
                errors.append(error)
            finally:
                client.close()

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(self._count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        yield from answers


@needs_server
@pytest.mark.slow
def test_a_real_server_answers_sixteen_clients_as_pytorch_does(digits: Path, tmp_path: Path) -> None:
    import tritonclient.http as over_http

    out, folder = tmp_path / "repository", tmp_path / "server"
    folder.mkdir()
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"digit {index}\n" for index in range(10)))
    command = ["triton", str(digits), "--out", str(out), "--backend", "python", "--labels", str(labels)]
    assert cli.run(command) == 0
    images, expected = golden.read(digits / "golden-32.safetensors", ["logits"])
    theirs = expected["logits"]
    limit = manifest.read(digits).parity[0].tolerance["relative"] * float(np.sqrt((theirs**2).mean()))
    requests = int(os.environ.get("ROPEVIT_REQUESTS", "10000"))
    with triton_server.serving(out / "models", folder) as server:
        clients, model = Clients(server, 16), NAME
        before = server.counts(model)
        tensors = [("image", "FP32", image[None]) for image in images]
        answers = list(clients.run(model, tensors, requests // 16))
        worst = max(float(np.abs(logits[0] - theirs[index]).max()) for index, logits in answers)
        assert len(answers) == requests // 16 * 16
        assert worst <= limit
        after = server.counts(model)
        assert after["request_failure"] == 0
        asked, ran = (after[name] - before[name] for name in ("count", "exec_count"))
        assert asked == len(answers)
        assert ran < asked / 1.5  # batches of more than one
        print(f"{len(answers)} requests, worst error {worst:.1e} of {limit:.1e}, {asked / ran:.2f} pictures a batch")

        # Encoded pictures through the ensemble: the golden photographs, which the exporter had prepared by itself.
        encoded = [("encoded", "BYTES", np.array([[photo.read_bytes()]], dtype=object)) for photo in PHOTOS]
        for index, logits in clients.run(f"{model}-32-pictures", encoded, 20):
            assert float(np.abs(logits[0] - theirs[1 + index]).max()) <= limit

        client = over_http.InferenceServerClient(server.http)
        broken = over_http.InferInput("encoded", [1, 1], "BYTES")
        broken.set_data_from_numpy(np.array([[b"no picture"]], dtype=object))
        with pytest.raises(Exception, match="not a picture"):
            client.infer(f"{model}-32-pictures", [broken])
        top = over_http.InferRequestedOutput("logits", class_count=1)
        given = over_http.InferInput("image", list(images[1:2].shape), "FP32")
        given.set_data_from_numpy(images[1:2])
        named = client.infer(model, [given], outputs=[top]).as_numpy("logits")[0, 0].decode()
        assert named.split(":")[1:] == [str(theirs[1].argmax()), f"digit {theirs[1].argmax()}"]
        client.close()
