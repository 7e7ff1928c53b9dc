"""The server's root update: a process with torch makes it, the server asks again and again; FLTrust folds with it."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import server_world as sw
import tiny_task
from both_sides import Both

from fedfleet.fleet_server import root, store_updates
from fedfleet.fleet_server.root_training import RootTrainer, root_command
from fedfleet.fleet_server.rules import VoidError
from fedfleet.models import prepared, training
from fedfleet.models.settings import TrainSettings
from fedfleet.models.task import Floats, Samples, Task
from fedfleet.models.training import fine_tune
from fedfleet.protocol.errors import UsageError

TINY = tiny_task.TASK
SETTINGS = {"epochs": 1, "learning_rate": 0.05}


def write_prepared(folder: Path, task: Task, samples: Samples) -> Path:
    meta = prepared.Meta(
        task=task.name,
        task_version=task.version,
        drives=("server/root",),
        parts=("train",),
        counts={"train_samples": len(samples), "train_judged": len(samples)},
        problems={},
    )
    prepared.write(folder, meta, samples={"train": samples})
    return folder


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    tiny_task.generate(tmp_path / "drives")
    return TINY.samples(tmp_path / "drives", [drive.key for drive in TINY.index(tmp_path / "drives").drives])


@pytest.fixture
def data(tmp_path: Path, samples: Samples) -> Path:
    return write_prepared(tmp_path / "root", TINY, samples)


def base() -> Floats:
    return training.vector(training.network(TINY, seed=0))


def test_the_process_writes_what_a_fine_tuning_gives(tmp_path: Path, data: Path, samples: Samples) -> None:
    np.save(tmp_path / "base.npy", base())
    told = ["--settings", '{"epochs": 1, "learning_rate": 0.05}', "--seed", "3"]
    files = ["--base", str(tmp_path / "base.npy"), "--out", str(tmp_path / "delta.npy")]
    assert root.main(["--task", "tiny_task:TASK", "--data", str(data), *files, *told]) == 0
    expected = fine_tune(TINY, base(), samples, TrainSettings.model_validate(SETTINGS), seed=3).delta
    assert np.load(tmp_path / "delta.npy").tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"--task": "tiny_task:NOTHING"}, "NOTHING"),
        ({"--data": "absent"}, "not a folder of prepared data"),
        ({"--settings": '{"epochs": 0}'}, "epochs"),
        ({"--settings": "{"}, "root set: "),
        ({"--base": "absent.npy"}, "absent.npy"),
    ],
)
def test_what_cannot_be_trained_is_one_line_and_writes_nothing(
    tmp_path: Path, data: Path, change: dict[str, str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "base.npy", base())
    told = {
        "--task": "tiny_task:TASK",
        "--data": str(data),
        "--base": str(tmp_path / "base.npy"),
        "--out": str(tmp_path / "delta.npy"),
    } | change
    assert root.main([word for pair in told.items() for word in pair]) == 2
    words = capsys.readouterr().err
    assert text in words
    assert words.count("\n") == 1
    assert not (tmp_path / "delta.npy").exists()


# --- the handle ---


def script(folder: Path, body: str) -> tuple[str, ...]:
    """A stand-in for the process: `given` has its options by name."""
    path = folder / "script.py"
    head = "import sys, numpy as np\ngiven = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n"
    path.write_text(head + body)
    return (sys.executable, str(path))


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[Callable[[str], RootTrainer]]:
    made: list[RootTrainer] = []

    def make(body: str) -> RootTrainer:
        made.append(RootTrainer(script(tmp_path, body), tmp_path / "work"))
        return made[-1]

    yield make
    for each in made:
        each.close()


def ask(trainer: RootTrainer, vector: Floats, *, version: int = 1, round_: int = 1) -> Floats:
    """Ask until it is there."""
    found: list[Floats] = []

    def act() -> None:
        answer = trainer.update(vector, SETTINGS, version=version, round_=round_)
        found.extend([] if answer is None else [answer])

    assert sw.pace(lambda: bool(found), act, timeout_s=60)
    return found[0]


HALF = 'np.save(given["--out"], np.load(given["--base"]) * np.float32(0.5))\n'


def test_the_first_question_starts_it_and_later_ones_find_the_same(
    trainer: Callable[[str], RootTrainer],
) -> None:
    one = trainer(HALF)
    vector = np.arange(4, dtype=np.float32)
    assert one.update(vector, SETTINGS, version=1, round_=1) is None
    first = ask(one, vector)
    assert np.array_equal(first, vector / 2)
    assert one.update(vector, SETTINGS, version=1, round_=1) is first
    # and another round is another training
    assert one.update(vector + 2, SETTINGS, version=2, round_=2) is None
    assert np.array_equal(ask(one, vector + 2, version=2, round_=2), vector / 2 + 1)


def test_the_round_is_the_seed(trainer: Callable[[str], RootTrainer]) -> None:
    one = trainer('np.save(given["--out"], np.full(2, int(given["--seed"]), np.float32))\n')
    assert ask(one, np.zeros(2, np.float32), round_=7).tolist() == [7.0, 7.0]


def test_a_failure_is_told_with_the_last_words_and_not_tried_again_in_the_round(
    trainer: Callable[[str], RootTrainer], tmp_path: Path
) -> None:
    one = trainer(f'open({str(tmp_path / "tries")!r}, "a").write("x")\nsys.exit("no data here")\n')
    for _ in range(2):
        with pytest.raises(VoidError, match=r"root training failed \(exit code 1\): no data here"):
            ask(one, np.zeros(2, np.float32))
    assert (tmp_path / "tries").read_text() == "x"
    with pytest.raises(VoidError):
        ask(one, np.zeros(2, np.float32), round_=2)
    assert (tmp_path / "tries").read_text() == "xx"


def test_what_is_under_way_is_ended(trainer: Callable[[str], RootTrainer]) -> None:
    one = trainer("import time\ntime.sleep(600)\n")
    one.update(np.zeros(2, np.float32), SETTINGS, version=1, round_=1)
    one.close()
    one.close()


@pytest.mark.timeout(300)
def test_our_own_process_trains_for_the_server(tmp_path: Path, data: Path, samples: Samples) -> None:
    with_tests = ("env", f"PYTHONPATH={Path(__file__).parent}")
    one = RootTrainer((*with_tests, *root_command("tiny_task:TASK", data)), tmp_path / "work")
    expected = fine_tune(TINY, base(), samples, TrainSettings.model_validate(SETTINGS), seed=4).delta
    assert ask(one, base(), round_=4).tobytes() == expected.tobytes()
    one.close()


# --- the whole server ---


NAMES = tuple(f"v{n}" for n in range(5))
LIARS = ("v1", "v3", "v4")


def world(folder: Path, **strategy: object) -> Both:
    """Three of five vehicles lie: more than any other rule stands."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(8, sw.INPUTS)).astype(np.float32)
    folder.mkdir(exist_ok=True)
    root_dir = write_prepared(
        folder / "root", sw.TASK, Samples(inputs, sw.answer(inputs), np.ones(8, np.bool_))
    )
    return Both(
        folder,
        regions={"north": NAMES},
        target=lambda name: -20 * sw.TRUTH if name in LIARS else sw.TRUTH,
        server={
            "strategy": {"rule": "fltrust", "root_dir": root_dir, "server_learning_rate": 1.0, **strategy},
            "rounds": {"total": 3, "quorum": 2, "contributors": {"north": list(NAMES)}},
            "downlink": {"value": "float32"},
        },
    )


def truth_script(folder: Path) -> tuple[str, ...]:
    np.save(folder / "truth.npy", sw.TRUTH)
    body = (
        f'np.save(given["--out"], (np.load({str(folder / "truth.npy")!r}) - np.load(given["--base"])) / 2)\n'
    )
    return script(folder, body)


def test_a_majority_of_liars_is_not_trusted(tmp_path: Path) -> None:
    # given a server whose root set shows the truth
    both = world(tmp_path)
    roots = both.parts.coordinator.roots
    assert isinstance(roots, RootTrainer)
    roots.command = truth_script(tmp_path)
    # when three rounds are run
    assert sw.pace(lambda: both.version == 3, both.turn, timeout_s=120)
    # then the model is near to it, and who lied was dropped
    vector = both.parts.coordinator.model.vector
    assert np.linalg.norm(vector - sw.TRUTH) < 0.2 * np.linalg.norm(sw.TRUTH)
    with both.parts.store.read() as connection:
        fates = store_updates.settled(connection, round_=1, region="north")
    assert {id_.vehicle: why for id_, (fate, why) in fates.items() if fate == "dropped"} == dict.fromkeys(
        LIARS, "no-trust"
    )
    both.close()


def test_a_root_training_that_fails_ends_the_round_and_returns_its_updates(tmp_path: Path) -> None:
    # given a task without a network, so that nothing can be trained
    both = world(tmp_path)
    assert sw.pace(lambda: bool(both.vehicles["v0"].refusals), both.turn, timeout_s=120)
    # then
    with both.parts.store.read() as connection:
        fates = store_updates.settled(connection, round_=1, region="north")
    assert {fate for fate, _ in fates.values()} == {"returned"}
    assert both.version == 0
    both.close()


def test_a_root_set_of_another_task_is_refused_at_start(tmp_path: Path, samples: Samples) -> None:
    wrong = write_prepared(tmp_path / "wrong", TINY, samples)
    with pytest.raises(UsageError, match="expected task linear_test version 1, got tiny version 3"):
        world(tmp_path, root_dir=wrong)
