"""One training: schedule, augmentation, resume, memory, divergence, checksums."""

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from tests.factories import CPU, Cut, data, digest, fitted, member, run_one, run_training
from workers.config.extensions import AUGMENTATIONS
from workers.config.job import derive_seed
from workers.config.recipe import Augment, check_strength
from workers.config.specs import MemberSpec, StudentSpec, TrainedMember, TrainSpec
from workers.diagnostics.callback import TrainingCallback
from workers.errors import CorruptFileError, DeviceMemoryError, DivergedError, TrainingStopped
from workers.models.build import build
from workers.models.network import Network
from workers.storage.checkpoint_record import CheckpointRecord
from workers.storage.checkpoints import Checkpoints
from workers.storage.files import tensors_sha256
from workers.storage.tensor_folder import Groups, load_tensors, save_tensors
from workers.training import evaluation as evaluate
from workers.training.augmentation import augment, make_augmentations, to_float
from workers.training.distillation import Teacher, distillation_loss
from workers.training.objective import Objective
from workers.training.optimization import learning_rate
from workers.training.steps import Stepper
from workers.training.task import TrainingData, TrainingResult, TrainingTask
from workers.training.train import train
from workers.training.trainer import Trainer, all_finite


def test_the_same_recipe_gives_the_same_bits_and_another_seed_others() -> None:
    assert digest(fitted()) == digest(fitted())
    assert digest(fitted()) != digest(fitted(member(seed=2, augment=("flip", "crop", "mixup"))))


def many(spec: MemberSpec, folder: Path, epochs: int, cut: int = 0, published: tuple[str, ...] = ()) -> dict[str, TrainingResult]:
    """Train a recipe of several members; return those that were made."""
    torch.set_num_threads(1)
    settings, callback = TrainSpec(epochs=epochs, batch_size=16), Cut(cut) if cut else TrainingCallback()
    return run_training(
        lambda: build(spec, 3, 8), data(), spec, settings, Checkpoints(folder, "me"), callback, published=published
    )


SNAPSHOTS = member(augment=("flip", "crop"), snapshots=3)


def test_snapshots_are_members_of_one_training(tmp_path: Path) -> None:
    made = many(SNAPSHOTS, tmp_path, 5)
    assert {name: len(result.history) for name, result in made.items()} == {"m.1": 2, "m.2": 3, "m.3": 5}
    assert len({digest(result) for result in made.values()}) == 3
    assert made["m.3"].seconds(3) < made["m.3"].seconds()


@pytest.mark.parametrize("cut", [3, 7, 12, 17, 23])
def test_snapshots_cut_off_anywhere_are_the_same_and_none_is_made_twice(cut: int, tmp_path: Path) -> None:
    whole = {name: digest(result) for name, result in many(SNAPSHOTS, tmp_path / "whole", 5).items()}
    made: dict[str, str] = {}

    def keep(one: TrainedMember, result: TrainingResult) -> None:
        assert one.name not in made
        made[one.name] = digest(result)

    task = TrainingTask(
        data(),
        SNAPSHOTS,
        TrainSpec(epochs=5, batch_size=16),
        SNAPSHOTS.members,
        CPU,
        Checkpoints(tmp_path / "cut", "me"),
        Cut(cut),
    )
    with pytest.raises(TrainingStopped):
        train(lambda: build(SNAPSHOTS, 3, 8), task, keep)
    left = tuple(one for one in SNAPSHOTS.members if one.name not in made)
    train(lambda: build(SNAPSHOTS, 3, 8), replace(task, members=left, callback=TrainingCallback()), keep)
    assert made == whole


def test_a_snapshot_whose_artifact_was_lost_is_made_again_from_the_start(tmp_path: Path) -> None:
    """The checkpoint is beyond its end: nothing leads back from there."""
    whole = many(SNAPSHOTS, tmp_path, 5)
    again = many(SNAPSHOTS, tmp_path, 5, published=("m.1", "m.3"))
    assert list(again) == ["m.2"]
    assert again["m.2"].resumed_from == 0
    assert digest(again["m.2"]) == digest(whole["m.2"])


def test_the_rate_falls_to_nothing_in_each_cycle_and_starts_anew() -> None:
    spec = member(snapshots=3, optimizer={"kind": "sgd", "lr": 0.2})
    rates = [learning_rate(TrainSpec(epochs=6), spec, step, 10) for step in range(60)]
    assert [rates[i] for i in (0, 20, 40)] == [0.2] * 3
    assert max(rates[i] for i in (19, 39, 59)) < 0.002
    assert all(a >= b for i in (0, 20, 40) for a, b in itertools.pairwise(rates[i : i + 20]))


def test_a_long_first_cycle_and_short_ones_at_a_lower_rate() -> None:
    spec = member(snapshots=3, cycles={"first": 0.6, "rate": 0.5}, optimizer={"kind": "sgd", "lr": 0.2})
    assert spec.cycle_lengths(10) == [6, 2, 2]
    rates = [learning_rate(TrainSpec(epochs=10), spec, step, 10) for step in range(100)]
    assert [rates[i] for i in (0, 60, 80)] == [0.2, 0.1, 0.1]
    assert max(rates[i] for i in (59, 79, 99)) < 0.002


@pytest.mark.parametrize("how", [{"kind": "swa", "last": 0.5}, {"kind": "ema", "decay": 0.9}], ids=["swa", "ema"])
def test_averaged_weights_are_a_second_member_of_the_same_training(how: dict[str, object], tmp_path: Path) -> None:
    spec = member(augment=("flip", "crop"), average=how)
    plain, second = many(spec, tmp_path / "whole", 4).values()
    assert digest(plain) == digest(fitted(member(augment=("flip", "crop")))), "nothing of the first is another for it"
    assert second.history == plain.history, "no epoch was trained for it"
    with pytest.raises(TrainingStopped):
        many(spec, tmp_path / "cut", 4, cut=7)
    resumed = many(spec, tmp_path / "cut", 4)
    assert [r.resumed_from > 0 for r in resumed.values()] == [True, True]
    assert [*map(digest, resumed.values())] == [digest(plain), digest(second)]
    assert digest(second) != digest(plain)


def test_an_average_that_was_asked_for_since_begins_anew(tmp_path: Path) -> None:
    """A checkpoint that knows nothing of it, or of another kind, is of no use."""
    plain, swa, ema = (member(augment=("flip",), **keys) for keys in ({}, {"average": "swa"}, {"average": "ema"}))
    before = None
    for spec in (plain, swa, ema):
        with pytest.raises(TrainingStopped):
            many(spec, tmp_path, 4, cut=7)
        assert [p.name for p in Checkpoints(tmp_path, "me").complete()] == ["000001-00000000", "000001-00000002"], before
        before = spec.average
    assert len(many(plain, tmp_path, 4)) == 1, "who asks for none goes on"


def test_stochastic_weight_averaging_is_the_mean_of_the_last_epochs_with_batch_statistics_of_its_own(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    ends: list[dict[str, Tensor]] = []

    class Ends(TrainingCallback):
        def on_epoch_end(self, epoch: int, metrics: dict[str, float]) -> None:
            ends.append({k: v.clone() for k, v in fit.network.state_dict().items()})

    spec = member(augment=("flip",), average={"kind": "swa", "last": 0.5})
    task = TrainingTask(data(), spec, TrainSpec(epochs=4, batch_size=16), spec.members, CPU, None, Ends())
    fit = Stepper(build(spec, 3, 8), task, 16)
    state = Trainer(fit, task).run().network.state_dict()
    by_hand = build(spec, 3, 8)
    by_hand.load_state_dict({k: (ends[2][k] + ends[3][k]) / 2 if "weight" in k or "bias" in k else v for k, v in ends[3].items()})
    for module in by_hand.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean over batches, each as heavy
    torch.manual_seed(derive_seed(1, "settle"))
    with torch.no_grad():
        for rows in data().fit[torch.randperm(80)].split(16):
            by_hand.train()(to_float(data().images[rows]))
    for key, value in by_hand.state_dict().items():
        assert torch.allclose(state[key].float(), value.float(), atol=1e-5), key


def test_batch_statistics_of_averaged_weights_are_those_of_all_classes() -> None:
    """Rows stand class by class, as in a folder: batches of one class each would lose what differs between the classes."""
    torch.set_num_threads(1)
    labels = torch.arange(97) * 3 // 97
    images = (torch.randint(0, 60, (97, 8, 8, 3)) + 90 * labels[:, None, None, None]).to(torch.uint8)
    given = TrainingData(images, labels, torch.arange(97), torch.arange(9))
    spec = member(augment=(), average={"kind": "swa", "last": 0.5})
    settings = TrainSpec(epochs=2, batch_size=32)
    found = run_training(lambda: build(spec, 3, 8), given, spec, settings)["m.swa"].network
    first = next(m for m in found.modules() if isinstance(m, nn.BatchNorm2d))
    seen: list[Tensor] = []
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        found.eval()(to_float(images))
    assert first.running_var is not None
    assert torch.allclose(first.running_var, seen[0].var((0, 2, 3)), rtol=0.15)


def test_an_exponential_average_is_that_of_train_ema(tmp_path: Path) -> None:
    second = many(member(augment=("flip", "crop"), average={"kind": "ema", "decay": 0.9}), tmp_path, 4)["m.ema"]
    assert digest(second) == digest(fitted(member(augment=("flip", "crop")), ema=0.9))


def student(**keys: object) -> StudentSpec:
    return StudentSpec.model_validate({"name": "student", "seed": 1, "width": 4, "augment": (), **keys})


def taught(spec: StudentSpec, rows: TrainingData, teacher: Teacher, folder: Path | None = None, cut: int = 0) -> TrainingResult:
    checkpoints, callback = (Checkpoints(folder, "me"), Cut(cut) if cut else TrainingCallback()) if folder else (None, None)
    settings = TrainSpec(epochs=4, batch_size=16)
    rows = replace(rows, teacher=teacher)
    return run_one(lambda: build(spec, 3, 8), rows, spec, settings, checkpoints, callback)


def test_the_distance_of_a_student_is_hintons() -> None:
    """By its definition: the KL divergence of softened distributions, and T² of it."""
    generator = torch.Generator().manual_seed(0)
    logits, teacher = (torch.randn(7, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    for temperature in (1.0, 3.0):
        p, q = ((x / temperature).softmax(1) for x in (teacher, logits))
        by_hand = (p * (p / q).log()).sum(1).mean() * temperature**2
        ours = distillation_loss(logits, teacher.softmax(1), temperature)
        assert abs(float(ours - by_hand)) < 1e-9
    assert float(distillation_loss(teacher, teacher.softmax(1), 2.0)) < 1e-12


def test_a_student_learns_from_its_teacher_alone_and_leaves_it_as_it_was(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    networks = [fitted(member(seed=seed)).network.eval() for seed in (1, 2)]
    before = [tensors_sha256(network.state_dict()) for network in networks]
    rows = data()
    whole = taught(student(), rows, Teacher(networks))
    unlabelled = taught(student(), replace(rows, labels=torch.zeros_like(rows.labels)), Teacher(networks))
    assert digest(whole) == digest(unlabelled), "with soft 1 no label is read"
    assert digest(whole) != digest(taught(student(), rows, Teacher(networks[:1])))
    labelled = [
        taught(student(soft=0.5), replace(rows, labels=labels), Teacher(networks)) for labels in (rows.labels, rows.labels * 0)
    ]
    assert digest(labelled[0]) != digest(labelled[1])
    assert whole.history[-1]["train/loss"] < whole.history[0]["train/loss"]
    assert [tensors_sha256(network.state_dict()) for network in networks] == before
    with pytest.raises(TrainingStopped):
        taught(student(), rows, Teacher(networks), tmp_path, cut=7)
    assert digest(taught(student(), rows, Teacher(networks), tmp_path)) == digest(whole), "resumed bit for bit"


def test_checkpoints_that_take_long_are_written_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch here takes some milliseconds: a slow disk must not make it half a second. What is free is two checkpoints here."""
    real, written, clock = Checkpoints.save, list[int](), itertools.count(0.0, 0.001)
    seconds = [0.0]
    monkeypatch.setattr("workers.training.checkpoint_policy.time", SimpleNamespace(monotonic=lambda: seconds[0] + next(clock)))

    def slow(self: Checkpoints, tensors: Groups, record: CheckpointRecord) -> None:
        seconds[0] += 0.15
        written.append(record.epoch)
        real(self, tensors, record)

    settings = TrainSpec(epochs=12, batch_size=16)
    spec = member(augment=())
    run_one(lambda: build(spec, 3, 8), data(), spec, settings, Checkpoints(tmp_path / "fast", "me"))
    assert len(Checkpoints(tmp_path / "fast", "me").complete()) == 2
    monkeypatch.setattr(Checkpoints, "save", slow)
    run_one(lambda: build(spec, 3, 8), data(), spec, settings, Checkpoints(tmp_path / "slow", "me"))
    assert written == [1, 2, 12], "the last one is there for whoever goes on from it"


@pytest.mark.parametrize("steps", [7, 10])
@pytest.mark.parametrize("keys", [{}, {"ema": 0.9}, {"clip": 0.5}, {"stop": {"patience": 9}}])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_fit_cut_off_and_resumed_equals_one_that_was_not(
    keys: dict[str, object], optimizer: str, steps: int, tmp_path: Path
) -> None:
    spec = member(optimizer=optimizer, arch="resnet18", augment=("crop",))
    settings = TrainSpec.model_validate({"epochs": 4, "batch_size": 16, "schedule": "one_cycle", **keys})
    rows = data()
    if "stop" in keys:
        rows = TrainingData(rows.images, rows.labels, rows.fit[8:], rows.watch, rows.fit[:8])

    def run(folder: Path, callback: TrainingCallback, seconds: float = 300) -> TrainingResult:
        checkpoints = Checkpoints(folder, "me")
        return run_one(lambda: build(spec, 3, 8), rows, spec, settings, checkpoints, callback, seconds)

    whole = run(tmp_path / "whole", TrainingCallback())
    with pytest.raises(TrainingStopped):
        run(tmp_path / "cut", Cut(steps))
    on_resume = run(tmp_path / "cut", TrainingCallback())
    assert on_resume.resumed_from >= 1
    assert digest(on_resume) == digest(whole)
    timeless = [
        [{k: v for k, v in e.items() if "second" not in k and k != "time"} for e in r.history] for r in (on_resume, whole)
    ]
    assert timeless[0] == timeless[1]


def test_a_long_epoch_writes_checkpoints_between_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.training.checkpoint_policy.FREE_SECONDS", 60)
    saved: list[str] = []

    class ClusterSnapshot(TrainingCallback):
        def on_checkpoint(self) -> None:
            saved.extend(p.name for p in Checkpoints(tmp_path / "c", "me").complete()[-1:])

    spec = member(augment=())
    run_one(
        lambda: build(spec, 3, 8),
        data(),
        spec,
        TrainSpec(epochs=2, batch_size=16),
        Checkpoints(tmp_path / "c", "me"),
        ClusterSnapshot(),
        0,
    )
    assert saved == [f"{e:06d}-{s:08d}" for e in (0, 1) for s in range(1, 5)][:4] + ["000001-00000000"] + [
        f"000001-{s:08d}" for s in range(1, 5)
    ] + ["000002-00000000"]
    assert len(list((tmp_path / "c").iterdir())) == 2


def test_accumulation_keeps_the_effective_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks without batch statistics end with the same weights, however the batch is cut."""

    def plain() -> Network:
        torch.manual_seed(0)
        return Network(nn.Sequential(nn.Flatten(), nn.Linear(192, 8)), nn.Linear(8, 3))

    def run(batch: int, accumulate: int) -> Tensor:
        spec = TrainSpec(epochs=2, batch_size=batch, accumulate=accumulate, precision="float32")
        return run_one(plain, data(), member(augment=()), spec).network.head.weight  # type: ignore[return-value]

    assert torch.allclose(run(32, 1), run(8, 4), atol=1e-6)


def test_out_of_memory_halves_the_micro_batch_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, notes, epochs = Objective.loss, list[str](), list[int]()

    def small_device(self: Objective, logits: Tensor, labels: Tensor) -> Tensor:
        if len(logits) > 4 and len(epochs) == 1:
            raise torch.OutOfMemoryError("raised by the test")
        return real(self, logits, labels)

    monkeypatch.setattr(Objective, "loss", small_device)
    spec = member(augment=())
    callback = TrainingCallback()
    callback.note = notes.append  # type: ignore[assignment, method-assign]
    callback.on_epoch_end = lambda epoch, metrics: epochs.append(epoch)  # type: ignore[method-assign]
    settings = TrainSpec(epochs=3, batch_size=16)
    result = run_one(lambda: build(spec, 3, 8), data(), spec, settings, Checkpoints(tmp_path / "c", "me"), callback)
    assert result.micro_batch == 4
    assert len(result.history) == 3
    assert result.resumed_from == 1
    assert len(notes) == 2


def test_a_device_too_small_for_one_image_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("raised by the test")

    monkeypatch.setattr(Objective, "loss", no_memory)
    with pytest.raises(DeviceMemoryError):
        fitted()


def test_nan_stops_the_member_at_once() -> None:
    with pytest.raises(DivergedError, match="epoch 1"):
        fitted(member(optimizer={"kind": "sgd", "lr": 1e30}))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_found_and_large_ones_are_none(bad: float) -> None:
    weights = [torch.ones(3, 4), torch.full((5,), 3e38), torch.full((5,), -3e38), torch.ones(2, dtype=torch.bfloat16)]
    assert not weights[1].sum().isfinite(), "its sum overflows"
    assert all_finite(weights)
    for number in range(len(weights)):
        broken = [weight.clone() for weight in weights]
        broken[number].view(-1)[1] = bad
        assert not all_finite(broken)
    assert not all_finite([torch.tensor([float("inf"), -float("inf")])])


def test_no_step_on_a_cpu_asks_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one, torch keeps each seed for a GPU that may come later, and formats the stack for it."""
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    fitted(epochs=1)
    of_one_epoch = len(seeds)
    fitted(epochs=3)
    assert len(seeds) == 2 * of_one_epoch


def test_early_stopping_uses_rows_of_its_own() -> None:
    rows = data()
    rows = TrainingData(rows.images, rows.labels, rows.fit[16:], rows.watch, rows.fit[:16])
    spec = member(optimizer={"kind": "sgd", "lr": 1e-12})
    settings = TrainSpec.model_validate({"epochs": 30, "batch_size": 16, "stop": {"patience": 2}, "precision": "float32"})
    result = run_one(lambda: build(spec, 3, 8), rows, spec, settings)
    losses = [epoch["stop/loss"] for epoch in result.history]
    assert len(losses) - 1 - losses.index(min(losses)) == 2, "it stops two epochs after the best one"
    assert losses != [epoch["fuse/loss"] for epoch in result.history]


def test_one_cycle_is_torchs() -> None:
    spec = TrainSpec.model_validate({"epochs": 5, "schedule": "one_cycle"})
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], 0.1)
    oracle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=50, cycle_momentum=False)
    for step in range(50):
        assert learning_rate(spec, member(), step, 10) == pytest.approx(oracle.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        if step < 49:
            oracle.step()


def test_step_schedule_divides_by_ten_every_thirty_epochs() -> None:
    spec = TrainSpec(epochs=90)
    rates = [learning_rate(spec, member(), epoch * 7, 7) for epoch in (0, 29, 30, 59, 60, 89)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


@pytest.mark.parametrize("name", AUGMENTATIONS.own_names())
def test_each_augmentation_changes_images_and_repeats_from_its_generator(name: str) -> None:
    images = data().images
    recipe = make_augmentations([Augment(name=name, strength=check_strength(name))])

    def run(seed: int) -> Tensor:
        return augment(images, data().labels, recipe, torch.Generator().manual_seed(seed))[0]

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    assert not torch.equal(run(1), to_float(images))
    assert run(1).shape == (96, 3, 8, 8)
    assert 0 <= run(1).min() <= run(1).max() <= 1


def test_crop_by_gather_equals_slicing_the_padded_image() -> None:
    images = data().images[:4]
    generator = torch.Generator().manual_seed(3)
    ours = augment(images, torch.zeros(4), make_augmentations([Augment(name="crop", strength=2)]), generator)[0]
    generator.manual_seed(3)
    offsets = torch.randint(0, 5, (2, 4, 1), generator=generator)
    for i in range(4):
        padded = nn.functional.pad(to_float(images)[i], (2, 2, 2, 2))
        row, column = int(offsets[0, i]), int(offsets[1, i])
        assert torch.equal(ours[i], padded[:, row : row + 8, column : column + 8])


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_file_is_noticed(damage: str, tmp_path: Path) -> None:
    save_tensors(tmp_path / "c", {"network": {"w": torch.rand(100)}}, CheckpointRecord(epoch=1))
    path = tmp_path / "c" / "network.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-5] ^= 1
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[:-10])
    else:
        path.unlink()
    with pytest.raises(CorruptFileError, match=r"network\.safetensors"):
        load_tensors(tmp_path / "c", "network")


def test_outputs_are_computed_without_tf32_where_nobody_looked_what_it_changes() -> None:
    """By which a GPU would answer a hundred times further from the exported model than its check allows."""
    network, seen = build(member(), 3, 8), []
    network.trunk.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    before = torch.backends.cudnn.allow_tf32
    evaluate.predict_outputs(network, data().images, torch.arange(4), CPU)
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32 == before


def test_bfloat16_is_not_chosen_where_a_gpu_would_emulate_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A T4 says that it can, and does it in software."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert evaluate.resolve_precision("auto", torch.device("cuda")) == "float32"


@pytest.mark.parametrize(("difference", "is_precise"), [(1e-6, True), (1e-2, False)])
def test_tf32_is_used_where_the_first_batch_is_the_same(difference: float, is_precise: bool) -> None:
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    asked: list[bool] = []

    def compute() -> Tensor:
        asked.append(torch.backends.cudnn.allow_tf32)
        return logits + difference * asked[-1] * torch.arange(3)

    assert evaluate.tf32_is_precise(compute) == is_precise
    assert asked == [False, True]
