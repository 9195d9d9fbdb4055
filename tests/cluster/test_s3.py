"""A store behind the S3 API of a server on loopback: cut uploads, failures, mistakes, a whole run.

Retries are those of s3fs and botocore; AWS_MAX_ATTEMPTS = 3 here keeps the waits short.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

import kdfm_ray as kdfm
from kdfm_ray import leases
from kdfm_ray.checkpoints import Checkpoints
from kdfm_ray.leases import lease
from kdfm_ray.remote import StoreError, create
from kdfm_ray.store import Store
from kdfm_ray.types import UserError

s3fs = pytest.importorskip("s3fs")
pytest.importorskip("flask_cors")  # of moto[server]
pytest.importorskip("moto")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(moto|botocore|aiobotocore|s3fs)"),
    pytest.mark.filterwarnings("ignore:[Uu]nclosed:ResourceWarning"),  # s3fs leaves connections
]
SECRET = "wJalrXUtnFEMI"
TINY = {
    "scale.num_workers": 0,
    "scale.cpus_per_worker": 1,
    "train.steps": 2,
    "train.batch_size": 4,
    "train.precision": "fp32",
    "train.memory_format": "channels_last",
    "fixmatch.mu": 1,
    "select.tau_select": 0.0,
    "select.clusterer": "none",
    "label.batch_size": 4,
    "data.image_size": 16,
    "baseline": False,
}


class Server:
    """moto's S3 with failures in front: ``fail`` takes them one request at a time."""

    def __init__(self):
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._app = DomainDispatcherApplication(create_backend_app)
        self._failures, self.failed = [], 0
        self.http = make_server("127.0.0.1", 0, self, threaded=True)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def fail(self, times, status, code, method=None):
        self._failures, self.failed = [times, status, code, method], 0

    def heal(self):
        self._failures = []

    def __call__(self, environ, start_response):
        if self._failures:
            times, status, code, method = self._failures
            if self.failed < times and method in (None, environ["REQUEST_METHOD"]):
                self.failed += 1
                if status == "reset":
                    raise ConnectionResetError
                start_response(status, [("Content-Type", "application/xml")])
                text = f"<Error><Code>{code}</Code><Message>of {SECRET}</Message></Error>"
                return [text.encode()]
        return self._app(environ, start_response)


@pytest.fixture(scope="module")
def server():
    found = Server()
    yield found
    found.http.shutdown()
    found.http.server_close()


@pytest.fixture(autouse=True)
def s3(server, tmp_path, monkeypatch):
    """A bucket of one test's own, and nothing of the user's own settings."""
    server.heal()
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem(use_listings_cache=False)
    bucket = f"bucket-{time.monotonic_ns()}"
    files.mkdir(bucket)
    yield files, bucket
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def store(s3):
    return Store(f"s3://{s3[1]}/some/prefix")


def write(store, text="hello"):
    with store.writing("outer", "k") as draft:
        (draft.path / "sub").mkdir()
        (draft.path / "sub" / "data.txt").write_text(text)
        draft.write_record({"length": len(text)})


def read(store):
    return (store.find("outer", "k").path / "sub" / "data.txt").read_text()


def objects(s3, name):
    files, bucket = s3
    return [path for path in files.find(bucket) if path.endswith(name)]


def test_round_trip_and_the_record_alone(store, tmp_path):
    store.check()
    assert store.find("outer", "k") is None
    write(store)
    artifact = Store(store.root).find("outer", "k")
    assert artifact.record() == {"length": 5}
    assert not (tmp_path / "home").exists(), "a record fetches nothing else"
    assert read(store) == "hello"


def test_a_check_leaves_nothing(s3, store):
    store.check()
    assert objects(s3, "") == []


def test_the_manifest_comes_last(s3, store, monkeypatch):
    puts, real = [], s3fs.S3FileSystem._call_s3

    async def noting(self, method, *args, **kwargs):
        if method == "put_object":
            puts.append(kwargs["Key"].rpartition("/")[2])
        return await real(self, method, *args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", noting)
    write(store)
    assert sorted(puts[:-1]) == ["data.txt", "record.json"]
    assert puts[-1] == "manifest.json"


def test_the_first_of_two_writers_stays(s3, store):
    with store.writing("outer", "k") as slow:
        write(Store(store.root), "first")
        (slow.path / "data.txt").write_text("second")
        slow.write_record({"length": 6})
    assert read(store) == "first"


def test_of_many_at_once_one_creates(store, monkeypatch):
    """Also where all of them saw nothing there."""
    monkeypatch.setattr(s3fs.S3FileSystem, "exists", lambda *_: False)
    path, won = f"{store._prefix}/x", []
    threads = [
        threading.Thread(target=lambda: won.append(create(store._fs, path, b"x"))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 5 + [True]


def test_a_cut_mirror_is_fetched_again(store):
    write(store)
    (store.find("outer", "k").path / "sub" / "data.txt").write_text("hel")
    assert read(store) == "hello"


@pytest.mark.parametrize("damage", ["same size", "cut", "lost"])
def test_a_damaged_object_is_named_where_it_lies(s3, store, damage):
    write(store)
    (path,) = objects(s3, "data.txt")
    if damage == "lost":
        s3[0].rm_file(path)
    else:
        s3[0].pipe_file(path, b"HELLO" if damage == "same size" else b"he")
    with pytest.raises(UserError, match=r"s3://.*data\.txt is damaged.*folder s3://\S+/outer/k to"):
        read(store)


def test_a_killed_upload_leaves_nothing_that_is_found(s3, store):
    code = (
        "import os, signal, sys\n"
        "from kdfm_ray.store import Store\n"
        "store = Store(sys.argv[1])\n"
        "put = store._fs.put_file\n"
        "def once(*arguments):\n"
        "    put(*arguments)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "store._fs.put_file = once\n"
        "with store.writing('outer', 'k') as draft:\n"
        "    (draft.path / 'a.txt').write_text('a')\n"
        "    draft.write_record({})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, store.root], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(objects(s3, "a.txt")) == 1, "a leftover of the attempt"
    assert store.find("outer", "k") is None
    write(store)
    assert read(store) == "hello"


@pytest.mark.parametrize(
    ("status", "code"),
    [("500 x", "InternalError"), ("503 x", "SlowDown"), ("503 x", "ServiceUnavailable"),
     ("reset", "")],
)  # fmt: skip
def test_failures_that_pass_are_not_noticed(server, store, status, code):
    server.fail(2, status, code, "PUT")
    write(store)
    assert server.failed == 2
    assert read(store) == "hello"


def test_failures_that_stay_end_with_the_store_named(server, store):
    server.fail(10**6, "500 x", "InternalError", "PUT")
    with pytest.raises(StoreError, match=r"the store s3://bucket-\d+: .*InternalError") as error:
        write(store)
    assert SECRET not in str(error.value)
    server.heal()
    assert store.find("outer", "k") is None
    write(store)
    assert read(store) == "hello"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Reds and blues, 16 with labels and 40 without."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for kind, color in (("red", (180, 60, 60)), ("blue", (60, 60, 180))):
        for folder, count in ((root / "labeled" / kind, 8), (root / "unlabeled", 20)):
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = np.array(color) + rng.integers(-40, 41, (16, 16, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{kind}{i}.png")
    return root


def train(store, out, images):
    return kdfm.train(
        labeled=images / "labeled",
        unlabeled=images / "unlabeled",
        model="wrn_10_2",
        out=out,
        store=store,
        settings=TINY,
        progress=False,
    )


def test_images_in_s3(s3, server, images, tmp_path, monkeypatch):
    """Listed and decoded there; refused access and silence stop the run, and skip nothing."""
    from kdfm_ray.config import parse_config
    from kdfm_ray.jobs import decode
    from kdfm_ray.jobs.prepare import prepare
    from kdfm_ray.jobs.session import open_session
    from kdfm_ray.types import RunFailed

    files, bucket = s3fs.S3FileSystem(use_listings_cache=False), f"images-{time.monotonic_ns()}"
    files.mkdir(bucket)
    for file in images.rglob("*.png"):
        files.pipe_file(f"{bucket}/{file.relative_to(images)}", file.read_bytes())
    files.pipe_file(f"{bucket}/unlabeled/bad.png", b"x")
    files.pipe_file(f"{bucket}/list.csv", b"path\nunlabeled/red0.png\nunlabeled/gone.png\n")

    def prepared(unlabeled):
        places = {"labeled": f"s3://{bucket}/labeled", "unlabeled": f"s3://{bucket}/{unlabeled}"}
        data = places | {"max_skipped": 0.1}
        scale = {"num_workers": 0}
        values = {"data": data, "scale": scale, "model": {"name": "wrn_10_2"}}
        config = parse_config(values)
        with open_session(config.scale, lambda event: None) as session:
            return prepare(session, Store(str(tmp_path / "store")), config).facts

    server.fail(10**6, "403 x", "AccessDenied")
    with pytest.raises(UserError, match=r"the images at s3://images-\d+: access is refused"):
        prepared("unlabeled")
    server.heal()
    found = prepared("unlabeled")
    assert [item["path"] for item in found["skipped"]] == [f"s3://{bucket}/unlabeled/bad.png"]
    assert found["num_train"] == 56
    assert prepared("unlabeled")["reused"]
    table = prepared("list.csv")
    assert [item["reason"] for item in table["skipped"]] == ["no such file"]
    files.pipe_file(f"{bucket}/unlabeled/red0.png", b"another content")
    with monkeypatch.context() as patch:
        patch.setattr(decode, "_check_roots", lambda roots: server.fail(10**6, "500 x", "Broken"))
        with pytest.raises(RunFailed, match="cannot be read now"):
            prepared("unlabeled")
    server.heal()
    assert len(prepared("unlabeled")["skipped"]) == 2


@pytest.mark.parametrize("mistake", ["bucket", "none", "wrong", "forbidden", "nobody", "password"])
def test_mistakes_are_told_before_anything_is_computed(
    s3, server, store, images, tmp_path, monkeypatch, mistake
):
    root, said = store.root, ""
    if mistake == "bucket":
        root, said = "s3://no-such-bucket/prefix", "there is no such bucket"
    elif mistake == "none":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        said = "no usable credentials.*AWS_ACCESS_KEY_ID"
    elif mistake in ("nobody", "password"):
        user = f"me:{SECRET}@" if mistake == "password" else ""
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{user}127.0.0.1:9")
        said = "does not answer.*AWS_ENDPOINT_URL"
    else:
        code = "InvalidAccessKeyId" if mistake == "wrong" else "AccessDenied"
        server.fail(10**6, "403 x", code)
        said = f"access is refused: check the credentials.*{code}"
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(UserError, match=f"the store s3://[^:]*: .*{said}") as error:
        train(root, tmp_path / "run", images)
    started = time.monotonic()
    with pytest.raises(UserError):
        Store(root).check()
    assert time.monotonic() - started < 15
    assert SECRET not in str(error.value)
    assert not s3[0].exists("no-such-bucket"), "and none was made"
    server.heal()
    assert objects(s3, "") == []


def test_states_are_kept_and_cut_ones_passed_over(s3, store):
    states = Checkpoints(store, "inner", "k")
    for step in (5, 20, 100):
        with states.writing(step) as folder:
            (folder / "a.txt").write_text(f"after {step}")
    with Checkpoints(Store(store.root), "inner", "k").latest() as found:
        assert (found.step, (found.path / "a.txt").read_text()) == (100, "after 100")
    assert len(objects(s3, "manifest.json")) == 2
    s3[0].pipe_file(f"{states._folder}/0000000200-cut/a.txt", b"aft")  # and no manifest
    with states.latest() as found:
        assert found.step == 100
    newest = max(objects(s3, "a.txt")[:-1])
    s3[0].pipe_file(newest, b"damage")
    with states.latest() as found:
        assert (found.step, len(found.damaged)) == (20, 1)
    states.clear()
    assert not states.any()


def test_a_state_that_cannot_be_uploaded_leaves_the_one_before(server, store):
    states = Checkpoints(store, "inner", "k")
    with states.writing(1) as folder:
        (folder / "a.txt").write_text("one")

    def save():
        with states.writing(2) as folder:
            (folder / "a.txt").write_text("two")
            server.fail(10**6, "500 x", "InternalError", "PUT")

    with pytest.raises(OSError, match="the store s3://"):
        save()
    server.heal()
    with states.latest() as found:
        assert found.step == 1


def test_leases(s3, store, monkeypatch):
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(leases, "DEAD_SECONDS", 1.0)
    inside, most, told, lock = 0, 0, [], threading.Lock()

    def work():
        nonlocal inside, most
        with lease(Store(store.root), "outer", "k", done=lambda: False, waiting=told.append):
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.3)
            with lock:
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert f"process {os.getpid()} on" in told[0]
    assert objects(s3, "") == [], "nothing is left"
    other = json.dumps({"token": "x", "host": "elsewhere", "beats": 1})
    s3[0].pipe_file(f"{store._prefix}/leases/outer-k.json", other.encode())
    started = time.monotonic()
    with lease(store, "outer", "k", done=lambda: False, waiting=told.append) as held:
        assert held
        assert time.monotonic() - started > 0.9


def test_a_whole_run_equals_that_with_a_folder(s3, store, images, tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.05)
    run = train(store.root, tmp_path / "run", images)
    again = train(store.root, tmp_path / "again", images)
    assert set(again.report["reused"]) == {"data", "outer", "label", "select", "inner",
                                           "evaluate", "pictures"}  # fmt: skip
    local = train(str(tmp_path / "store"), tmp_path / "local", images)
    assert run.report["val_accuracy"] == local.report["val_accuracy"]
    weights = [(path / "model.safetensors").read_bytes() for path in (run.path, local.path)]
    assert weights[0] == weights[1]
    assert not [path for path in s3[0].find(s3[1]) if "/states/" in path or "/leases/" in path]


def test_labeling_goes_on_with_the_shards_that_are_missing(store, images, tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.05)
    from kdfm_ray.jobs import label

    real, calls = label.Labeler.rows, []

    def rows(self, index):
        calls.append(len(index))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, index)

    monkeypatch.setattr(label.Labeler, "rows", rows)
    with pytest.raises(KeyboardInterrupt):
        train(store.root, tmp_path / "run", images)
    train(store.root, tmp_path / "run", images)
    del calls[2]  # the one that was interrupted
    (record,) = [path for path in store._fs.find(f"{store._prefix}/labels") if "record" in path]
    assert sum(calls) == json.loads(store._fs.cat_file(record))["count"], "each image once"


@pytest.fixture
def ray_cluster(s3):
    """A node of two CPUs beside a head without; it has this test's settings, as real nodes have."""
    from kdfm_ray.jobs.session import prepare_environment

    prepare_environment(local=True)
    from ray.cluster_utils import Cluster

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    head = {"num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=2)
    yield cluster
    cluster.shutdown()
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.timeout(590)
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning:ray")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_two_workers_a_labeling_job_and_the_run_folder_in_s3(s3, ray_cluster, monkeypatch):
    """By a kind of URI that pyarrow, with which Ray Train writes its notes, does not know."""
    files, bucket = s3
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster.address)
    more = {"scale.num_workers": 2, "label.num_actors": 2, "label.batch_size": 128}
    run = kdfm.train(
        "digits",
        out=f"s3://{bucket}/runs/digits",
        store=f"s3a://{bucket}/some/prefix",
        settings=TINY | more,
        progress=False,
    )
    assert run.report["test_accuracy"]["inner"] is not None
    assert run.report["resources"]["workers"] == 2
    there = {path[len(f"{bucket}/runs/digits/") :] for path in files.find(f"{bucket}/runs")}
    assert there >= {"report.json", "report.html", "model.safetensors", "metrics.jsonl"}
    report = json.loads(files.cat_file(f"{bucket}/runs/digits/report.json"))
    assert report["test_accuracy"] == run.report["test_accuracy"]
    assert b"<html" in files.cat_file(f"{bucket}/runs/digits/report.html")[:2000]
    parts = [path for path in files.find(f"{bucket}/some/prefix/labels") if ".parquet" in path]
    assert len(parts) > 2
    left = [path for path in files.find(bucket) if "/states/" in path or "/ray_train/" in path]
    assert left == [], "notes and states are gone"
