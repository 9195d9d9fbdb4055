"""A training that is interrupted and goes on ends as one that was not, bit by bit."""

import json

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_loop import free_port, make_config, make_data, make_network

from kdfm_ray.checkpoints import Checkpoints
from kdfm_ray.config import parse_config
from kdfm_ray.models.numerics import Numerics
from kdfm_ray.store import Store
from kdfm_ray.training import saver as saver_module
from kdfm_ray.training.loop import train_network
from kdfm_ray.training.runtime import Runtime, Wish
from kdfm_ray.types import Stopped, UserError

STEPS = 7


def configure(config=None, **sections):
    """The loop's test config with other settings, ``section={name: value}``."""
    values = (config or make_config(steps=STEPS, log_every=3, eval_every=4)).model_dump(mode="json")
    for section, changes in sections.items():
        values[section] |= changes
    return parse_config(values)


def plan(*stops):
    """Wishes: stop after each of these updates (numbered over all calls), asked after each one."""
    calls = iter(range(1, 10_000))
    return lambda updates: Wish.STOP if next(calls) in stops else Wish.NONE


def train(config, checkpoints=None, *, role="outer", wish=lambda updates: Wish.NONE, **more):
    runtime = Runtime(wish=wish, **more)
    torch.manual_seed(321)  # nothing may depend on the global generator
    return train_network(
        make_network(config),
        make_data(trusted=role == "inner"),
        config,
        role,
        runtime,
        numerics=Numerics(),
        checkpoints=checkpoints,
    )


@pytest.fixture(autouse=True)
def ask_after_each_update(monkeypatch):
    monkeypatch.setattr(saver_module, "AGREE_SECONDS", 0.0)


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(Store(str(tmp_path)), "outer", "key")


def assert_same(result, expected):
    state, wanted = result.network.state_dict(), expected.network.state_dict()
    assert state.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(state[name], value), name
    assert result.val_accuracy == expected.val_accuracy

    def without_times(lines):
        return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]

    assert without_times(result.metrics) == without_times(expected.metrics)


@pytest.mark.parametrize("stop", range(1, STEPS))
def test_stopped_after_any_update_and_resumed_it_is_the_same(checkpoints, stop):
    config = configure()
    with pytest.raises(Stopped, match=f"after update {stop} of {STEPS}.*its state is saved"):
        train(config, checkpoints, wish=plan(stop))
    result = train(config, checkpoints)
    assert_same(result, train(config))
    assert result.resumed == [stop]


@pytest.mark.parametrize(
    ("role", "sections"),
    [
        ("baseline", {}),
        ("inner", {}),
        ("outer", {"model": {"norm": "batch"}}),
        ("outer", {"model": {"drop_rate": 0.3}}),
        ("outer", {"train": {"optimizer": "adamw", "learning_rate": 0.001, "warmup_steps": 3}}),
        ("outer", {"train": {"momentum": 0.0, "ema_warmup": False}}),
        ("outer", {"fixmatch": {"align": "labeled"}}),
        ("inner", {"fixmatch": {"align": "uniform", "thresholds": "adaptive"}}),
        ("inner", {"fixmatch": {"strong_views": "masked"}, "model": {"norm": "batch"}}),
    ],
)
def test_twice_in_a_row_whatever_is_trained(checkpoints, role, sections):
    config = configure(**sections)
    for stop in (2, 3):
        with pytest.raises(Stopped):
            train(config, checkpoints, role=role, wish=plan(stop))
    result = train(config, checkpoints, role=role)
    assert_same(result, train(config, role=role))
    assert result.resumed == [2, 5]


def test_states_are_saved_every_so_many_updates_and_the_last_two_kept(checkpoints, tmp_path):
    class Killed(Exception):
        pass

    def kill(event):
        if event.get("step") == 6:
            raise Killed

    config = configure(faults={"save_every": 2}, train={"log_every": 1})
    with pytest.raises(Killed):
        train(config, checkpoints, emit=kill)
    names = sorted(path.name[:10] for path in (tmp_path / "states/outer/key").iterdir())
    assert names == ["0000000002", "0000000004"]
    result = train(config, checkpoints)
    assert result.resumed == [4]
    assert_same(result, train(config))


def test_states_are_saved_by_time(checkpoints):
    config = configure(faults={"save_minutes": 1e-6})
    train(config, checkpoints)
    with checkpoints.latest() as found:
        assert found.step == STEPS - 1


def test_a_machine_that_goes_has_the_state_saved_at_once(checkpoints):
    calls = iter(range(1, 100))
    train(configure(), checkpoints, wish=lambda _: Wish.SAVE if next(calls) >= 3 else Wish.NONE)
    with checkpoints.latest() as found:
        assert found.step == 3, "and not after each update from then on"


def newest(checkpoints):
    with checkpoints.latest() as found:
        return found.path


@pytest.mark.parametrize("damage", ["cut", "lost", "flipped", "no manifest"])
def test_a_damaged_state_falls_back_to_the_one_before_loudly(checkpoints, damage):
    config, events = configure(faults={"save_every": 1}), []
    with pytest.raises(Stopped):
        train(config, checkpoints, wish=plan(4))
    path = newest(checkpoints)
    file = path / "state.safetensors"
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[:-10])
    elif damage == "lost":
        file.unlink()
    elif damage == "flipped":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        (path / "manifest.json").write_text("{")
    result = train(config, checkpoints, emit=events.append)
    assert result.resumed == [3]
    assert_same(result, train(config))
    (warning,) = [event["warning"] for event in events if "warning" in event]
    assert "going on from the one before, after update 3" in warning


def test_only_damaged_states_end_with_what_to_do(checkpoints):
    config = configure(faults={"save_every": 1})
    with pytest.raises(Stopped):
        train(config, checkpoints, wish=plan(3))
    for _ in range(2):
        path = newest(checkpoints)
        (path / "state.json").unlink()
        try:
            newest(checkpoints)
        except UserError:
            break
    with pytest.raises(UserError, match=r"damaged \(.*state.json is missing.*delete the folder"):
        train(config, checkpoints)


def test_a_state_of_a_newer_version_is_refused(checkpoints):
    with pytest.raises(Stopped):
        train(configure(), checkpoints, wish=plan(3))
    manifest = newest(checkpoints) / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    with pytest.raises(UserError, match=r"newer kdfm_ray \(format 99, this one reads 1\)"):
        train(configure(), checkpoints)


def test_a_state_of_another_network_is_refused_and_kept(checkpoints):
    with pytest.raises(Stopped):
        train(configure(), checkpoints, wish=plan(3))
    other = configure(model={"norm": "batch"})
    with pytest.raises(UserError, match="cannot go on from the state after update 3"):
        train(other, checkpoints)
    assert checkpoints.any()


def test_a_full_disk_costs_a_warning_and_no_state(checkpoints, monkeypatch):
    config, events = configure(faults={"save_every": 1}), []
    with pytest.raises(Stopped):
        train(config, checkpoints, wish=plan(2))

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("kdfm_ray.training.state.save_file", full)
        with pytest.raises(Stopped, match="goes on from the state after update 2"):
            train(config, checkpoints, wish=plan(2), emit=events.append)
    warnings = [event["warning"] for event in events if "warning" in event]
    assert warnings
    assert "No space left" in warnings[0]
    assert "the last good state, after update 2, stays" in warnings[0]
    result = train(config, checkpoints)
    assert result.resumed == [2], "the second try left no trace"
    assert_same(result, train(config))


def test_weights_that_are_not_finite_are_never_saved(checkpoints):
    config = configure(train={"learning_rate": 1e30, "log_every": 100}, faults={"save_every": 1})
    with pytest.raises(FloatingPointError, match=r"in update \d of 7"):
        train(config, checkpoints)
    with checkpoints.latest() as found:
        if found is not None:
            from kdfm_ray.training.state import State

            assert State.read(found.path).is_finite()


def _worker(rank, world, port, folder, stop):
    torch.set_num_threads(1)
    saver_module.AGREE_SECONDS = 0.0
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )
    wish = plan(stop) if rank == world - 1 else plan()  # whoever asks, all of them stop
    try:
        result = train(
            configure(),
            Checkpoints(Store(folder), "outer", "key"),
            wish=wish,
            rank=rank,
            world_size=world,
        )
        torch.save((result.network.state_dict(), result.metrics), f"{folder}/{rank}.pt")
    except Stopped:
        assert stop
    dist.destroy_process_group()


@pytest.mark.long
def test_another_number_of_workers_goes_on_with_the_same_global_batches(tmp_path):
    """2, then 1, then 3 workers, on a network without batch norm."""
    mp.spawn(_worker, (2, free_port(), str(tmp_path), 2), nprocs=2)
    checkpoints = Checkpoints(Store(str(tmp_path)), "outer", "key")
    with pytest.raises(Stopped, match="after update 5"):
        train(configure(), checkpoints, wish=plan(3))
    mp.spawn(_worker, (3, free_port(), str(tmp_path), 0), nprocs=3)
    single = train(configure())
    for rank in range(3):
        state, metrics = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in single.network.state_dict().items():
            # Rounding of 7 updates (4.5e-5 was seen); another batch would move weights by 1e-2.
            torch.testing.assert_close(state[name], value, atol=2e-4, rtol=0)
    state, metrics = torch.load(tmp_path / "0.pt", weights_only=True)
    assert [line["step"] for line in metrics] == [line["step"] for line in single.metrics]
    for line, expected in zip(metrics, single.metrics, strict=True):
        for name in ("loss_x", "loss_u", "mask_rate", "val_accuracy"):
            assert line.get(name) == pytest.approx(expected.get(name), abs=1e-4), name


@pytest.mark.long
def test_two_workers_with_their_own_batch_norm_go_on_exactly(tmp_path):
    """Their running statistics differ; each gets its own back."""
    results = []
    for name, stops in (("whole", (0,)), ("parts", (3, 0))):
        folder = tmp_path / name
        folder.mkdir()
        for stop in stops:
            args = (2, free_port(), str(folder), stop)
            mp.spawn(_batch_norm_worker, args, nprocs=2)
        results.append(torch.load(folder / "1.pt", weights_only=True))
    whole, parts = results
    for name, value in whole[0].items():
        assert torch.equal(parts[0][name], value), name


def _batch_norm_worker(*args):
    global configure
    plain = configure
    configure = lambda: plain(model={"norm": "batch"})  # noqa: E731
    _worker(*args)
