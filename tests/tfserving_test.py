"""TF Serving's files: read as the server reads them, as far as that can be known without it."""

import contextlib
import http.server
import itertools
import json
import pathlib
import re
import subprocess
import threading

import numpy as np
import pytest
import tensorflow as tf
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from tensorflow_serving.config import model_server_config_pb2

from export import artefact, samples, savedmodel, served

ROOT = pathlib.Path(__file__).parent.parent
FOLDER = ROOT / "serving" / "tfserving"
PAGE = (ROOT / "docs" / "serving.md").read_text("utf-8").partition("## A server\n")[2]

# Of tensorflow_serving/config/{model_server_config,monitoring_config}.proto and
# servables/tensorflow/session_bundle_config.proto: {message: {field: (number, type)}}; "*" is
# repeated. A map is its entries. Fields that are not used here are left out, and refused.
_MESSAGES = {
    "ModelServerConfig": {"model_config_list": (1, "ModelConfigList")},
    "ModelConfigList": {"config": (1, "ModelConfig*")},
    "ModelConfig": {
        "name": (1, "string"),
        "base_path": (2, "string"),
        "model_platform": (4, "string"),
        "model_version_policy": (7, "ServableVersionPolicy"),
        "version_labels": (8, "Label*"),
    },
    "ServableVersionPolicy": {"specific": (102, "Specific")},
    "Specific": {"versions": (1, "int64*")},
    "Label": {"key": (1, "string"), "value": (2, "int64")},
    "MonitoringConfig": {"prometheus_config": (1, "PrometheusConfig")},
    "PrometheusConfig": {"enable": (1, "bool"), "path": (2, "string")},
    "BatchingParameters": {
        "max_batch_size": (1, "Int64Value"),
        "batch_timeout_micros": (2, "Int64Value"),
        "max_enqueued_batches": (3, "Int64Value"),
        "num_batch_threads": (4, "Int64Value"),
        "allowed_batch_sizes": (6, "int64*"),
    },
    "Int64Value": {"value": (1, "int64")},
}

# Flags of tensorflow_model_server that can be of use here, from its main.cc.
_FLAGS = {
    "port",
    "rest_api_port",
    "rest_api_timeout_in_ms",
    "enable_batching",
    "batching_parameters_file",
    "allow_version_labels_for_unavailable_models",
    "model_config_file",
    "model_config_file_poll_wait_seconds",
    "tensorflow_intra_op_parallelism",
    "tensorflow_inter_op_parallelism",
    "ssl_config_file",
    "per_process_gpu_memory_fraction",
    "num_request_iterations_for_warmup",
    "monitoring_config_file",
}


def _parsed(name, message):
    """A file of text as a message of `_MESSAGES`."""
    field_type = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="a.proto", package="a", syntax="proto3")
    for each, fields in _MESSAGES.items():
        described = file.message_type.add(name=each)
        for field, (number, kind) in fields.items():
            plain = kind.removesuffix("*")
            added = described.field.add(name=field, number=number, label=1 if plain == kind else 3)
            if plain in _MESSAGES:
                added.type, added.type_name = field_type.TYPE_MESSAGE, f".a.{plain}"
            else:
                added.type = getattr(field_type, f"TYPE_{plain.upper()}")
    classes = message_factory.GetMessages([file], pool=descriptor_pool.DescriptorPool())
    return text_format.Parse((FOLDER / name).read_text(), classes[f"a.{message}"]())


def _interpolated(text, environment):
    """Text with its variables as Compose puts them in."""

    def value(match):
        name, kind, rest = match.groups()
        if kind == ":?" and name not in environment:
            raise KeyError(rest)
        return environment.get(name, rest)

    return re.sub(r"\$\{(\w+)(:-|:\?)([^}]*)\}", value, text)


@pytest.fixture(scope="module")
def services():
    """compose.yaml's services, with the defaults of its variables."""
    text = _interpolated((FOLDER / "compose.yaml").read_text(), {"MODELS": "/home/me/models"})
    found = yaml.safe_load(text)["services"]
    assert "$" not in str(found)  # Compose would take it for a variable
    return found


@pytest.fixture(scope="module")
def model():
    (found,) = _parsed("models.config", "ModelServerConfig").model_config_list.config
    return found


def _command(service):
    """{flag: value} of what a service starts the server with."""
    return dict(re.fullmatch(r"--(\w+)=(.+)", flag).groups() for flag in service["command"])


def _mounts(service):
    return {each["target"]: each for each in service["volumes"]}


def test_a_model_of_labelled_versions(model, services):
    labels = {label.key: label.value for label in model.version_labels}
    assert set(labels) == {"stable", "canary"}
    assert set(labels.values()) <= set(model.model_version_policy.specific.versions)
    assert model.model_platform == "tensorflow"
    for service in services.values():
        assert pathlib.PurePath(model.base_path).parent.as_posix() in _mounts(service)


def test_allowed_batch_sizes_end_at_the_largest_and_are_the_exports():
    batching = _parsed("batching.config", "BatchingParameters")
    largest = batching.max_batch_size.value
    assert batching.allowed_batch_sizes[-1] == largest == served.Options().max_batch_size
    assert list(batching.allowed_batch_sizes) == served.batch_sizes(largest)
    # A batch may wait for another as long as in the graph, and as many threads as there work.
    assert batching.batch_timeout_micros.value == served.Options().batch_timeout_micros
    assert batching.num_batch_threads.value >= 1
    assert batching.max_enqueued_batches.value >= batching.num_batch_threads.value


def test_the_servers_own_batching_is_off(services):
    for service in services.values():
        assert not {flag for flag in _command(service) if "batching" in flag}


def test_metrics_are_at_the_port_of_rest():
    prometheus = _parsed("monitoring.config", "MonitoringConfig").prometheus_config
    assert prometheus.enable
    assert f"http://127.0.0.1:8501{prometheus.path}" in PAGE


def test_the_image_is_of_the_tensorflow_that_exports(services):
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    (minor,) = (
        re.match(r"tensorflow>=(\d+\.\d+)", line)[1] for line in lines if "tensorflow>" in line
    )
    assert tf.__version__.startswith(f"{minor}.")
    assert {name: service["image"] for name, service in services.items()} == {
        "cpu": f"tensorflow/serving:{minor}.0",
        "gpu": f"tensorflow/serving:{minor}.0-gpu",
    }


def test_every_flag_is_the_servers_and_every_file_is_there(services):
    for service in services.values():
        assert _mounts(service)["/config"]["source"] == "."
        command = _command(service)
        assert set(command) <= _FLAGS
        files = [value for flag, value in command.items() if flag.endswith("_file")]
        assert len(files) == 2
        for file in files:
            path = pathlib.PurePath(file)
            assert path.parent.as_posix() == "/config"
            assert (FOLDER / path.name).is_file()


def test_labels_can_be_given_before_their_versions_are_loaded(services):
    for service in services.values():
        assert _command(service)["allow_version_labels_for_unavailable_models"] == "true"
        assert int(_command(service)["model_config_file_poll_wait_seconds"]) > 0


def test_a_profile_each_and_one_gpu(services):
    assert {name: service["profiles"] for name, service in services.items()} == {
        "cpu": ["cpu"],
        "gpu": ["gpu"],
    }
    resources = services["gpu"]["deploy"]["resources"]
    assert resources["reservations"]["devices"] == [
        {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    ]


def test_nothing_is_written_nothing_is_open_to_others_and_everything_has_a_limit(services):
    for service in services.values():
        for mount in service["volumes"]:
            assert mount["read_only"] is True
        assert service["ports"] == ["127.0.0.1:8500:8500", "127.0.0.1:8501:8501"]
        assert service["restart"] == "unless-stopped"
        limits = service["deploy"]["resources"]["limits"]
        assert set(limits) == {"cpus", "memory"}
        # More threads than CPUs would stop each other.
        assert _command(service)["tensorflow_intra_op_parallelism"] == str(limits["cpus"])


def test_without_a_folder_of_models_compose_says_so():
    with pytest.raises(KeyError, match="the folder in which deit/1 lies"):
        _interpolated((FOLDER / "compose.yaml").read_text(), {})


@contextlib.contextmanager
def _status_of(state):
    """A port at which a model of such a state tells it as TF Serving does."""
    code = "OK" if state == "AVAILABLE" else "UNAVAILABLE"
    status = {"error_code": code, "error_message": ""}
    told = {"model_version_status": [{"version": "1", "state": state, "status": status}]}

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # which leaves connections open, to those who speak it

        def do_GET(self):
            known = self.path == "/v1/models/deit"
            body = json.dumps(told if known else {"error": "none"}, indent=1).encode()
            self.send_response(200 if known else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield str(server.server_port)
        finally:
            server.shutdown()
            thread.join()


def _healthy(service, port, model="deit"):
    """Whether a health check, run as Docker runs it, but at another port, passes."""
    kind, *command = service["healthcheck"]["test"]
    assert kind == "CMD"
    *start, script = command
    assert "/8501" in script
    script = script.replace("/8501", f"/{port}").replace("/deit", f"/{model}")
    found = subprocess.run([*start, script], capture_output=True, timeout=10, check=False)
    return found.returncode == 0


def test_the_health_check_passes_when_a_version_is_available_and_else_fails(services):
    for service in services.values():
        with _status_of("AVAILABLE") as port:
            assert _healthy(service, port)
            assert not _healthy(service, port, model="other")
        for state in ("LOADING", "UNLOADING", "END"):
            with _status_of(state) as port:
                assert not _healthy(service, port)
        assert not _healthy(service, port)  # where nothing listens any more


def _steps(heading):
    """Rows of the page's table below a heading: (versions, {label: version})."""
    section = re.split(r"^### ", PAGE, flags=re.M)
    (body,) = (each for each in section if each.startswith(heading + "\n"))
    rows = [line.strip("|").split("|") for line in body.splitlines() if line.startswith("| ")]
    labels = [cell.strip(" `") for cell in rows[0][2:4]]
    for _, versions, *values, _ in rows[1:]:
        yield (
            {int(version) for version in versions.split()},
            dict(zip(labels, map(int, values), strict=True)),
        )


@pytest.mark.parametrize("heading", ["Rollout", "Rollback"])
def test_the_page_moves_labels_only_to_versions_that_are_loaded(heading):
    steps = list(_steps(heading))
    assert len(steps) >= 4
    for versions, labels in steps:
        assert set(labels) == {"stable", "canary"}
        assert set(labels.values()) <= versions
    for (loaded, before), (_, after) in itertools.pairwise(steps):
        moved = {label for label in before if before[label] != after[label]}
        assert all(after[label] in loaded for label in moved)


def test_the_page_begins_and_ends_as_the_files_are(model):
    rollout, rollback = list(_steps("Rollout")), list(_steps("Rollback"))
    labels = {label.key: label.value for label in model.version_labels}
    assert rollout[0] == (set(model.model_version_policy.specific.versions), labels)
    assert rollback[0] == rollout[-1]
    assert rollback[-1] == rollout[0]


def test_every_flag_on_the_page_is_known():
    rest = PAGE
    for command, module in re.findall(r"(python -m ([\w.]+)[^`\n]*)", PAGE):
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
        for flag in re.findall(r"--(\w+)", command):
            assert f'"{flag}"' in source or f'"--{flag}"' in source, command
        rest = rest.replace(command, "")
    others = {"profile", "wait", "wrap", "data", "artefact", "max_pixels"}
    assert set(re.findall(r"(?<!-)--(\w+)", rest)) <= _FLAGS | others


def test_servings_own_messages_read_the_models():
    text = (FOLDER / "models.config").read_text()
    whole = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    (found,) = whole.model_config_list.config
    assert found.model_version_policy.WhichOneof("policy_choice") == "specific"
    assert dict(found.version_labels) == {"stable": 1, "canary": 1}


@pytest.mark.slow
def test_what_an_export_writes_is_what_the_files_serve(micro_run, model, tmp_path):
    """The version is found where it is looked for, and server-side batching does what is said."""
    exported, _ = savedmodel.export(micro_run, tmp_path / pathlib.Path(model.base_path).name)
    for version in model.model_version_policy.specific.versions:
        mounted = tmp_path / pathlib.PurePath(model.base_path).relative_to("/models")
        assert mounted / str(version) == exported
    opened = artefact.SavedModel(exported)
    images = samples.encoded(micro_run, 3)
    corrupt = images[0][: len(images[0]) // 2]
    alone = [opened.call("serving_default", [image])["probabilities"] for image in images]
    # Merged before decoding, as the server's batching merges: the good ones fail as well.
    with pytest.raises(tf.errors.InvalidArgumentError, match="Invalid JPEG data"):
        opened.call("serving_default", [*images, corrupt])
    # Pixels merged and filled up to an allowed size are answered rightly.
    pixels = samples.pixels(images, opened.manifest)
    sizes = _parsed("batching.config", "BatchingParameters").allowed_batch_sizes
    full = next(size for size in sizes if size >= len(pixels))
    filled = np.concatenate([pixels, np.repeat(pixels[-1:], full - len(pixels), axis=0)])
    answered = opened.call("pixels", filled)["probabilities"][: len(pixels)]
    np.testing.assert_allclose(answered, np.concatenate(alone), atol=1e-5)
