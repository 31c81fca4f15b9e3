import functools
import hashlib
import http.server
import io
import json
import os
import pickle
import random
import tarfile
import threading

import numpy as np
import pytest
import torch

from lab import data, files, registry


def write_registry(root, monkeypatch, entries):
    (root / "data").mkdir(parents=True, exist_ok=True)
    (root / "data" / "registry.json").write_text(json.dumps(entries))
    monkeypatch.setattr(registry, "ROOT", root)


def test_mnist1d_is_the_published_set():
    parts = data.mnist1d()
    assert parts.x.shape == (4000, 40) and parts.x_validation.shape == parts.x_test.shape == (1000, 40)
    assert parts.x.dtype == torch.float32 and parts.y.dtype == torch.int64 and set(parts.y.tolist()) == set(range(10))
    test = {row.numpy().tobytes() for row in parts.x_test}
    for other in (parts.x, parts.x_validation):
        assert not test & {row.numpy().tobytes() for row in other}


@pytest.fixture
def generated(tmp_path, monkeypatch):
    """An empty cache, and the seeds that are generated, in their order."""
    seeds = []
    original = data._generate_mnist1d
    monkeypatch.setattr(files, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(data, "_generate_mnist1d", lambda seed: seeds.append(seed) or original(seed))
    return seeds


def test_mnist1d_is_generated_once_for_all_processes(generated):
    first, again = loaded("mnist1d"), loaded("mnist1d")
    assert generated == [42, 43]
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(first, again, strict=True))


def test_a_damaged_or_foreign_file_is_generated_anew(generated):
    right = loaded("mnist1d")
    published, fresh = sorted(files.CACHE.iterdir(), key=lambda path: "seed-43" in path.name)
    content = bytearray(published.read_bytes())
    content[1000] ^= 1
    damages = {
        "a flipped bit": lambda: published.write_bytes(content),
        "cut short": lambda: published.write_bytes(published.read_bytes()[:-1]),
        "empty": lambda: published.write_bytes(b""),
        "another's": lambda: published.write_bytes(fresh.read_bytes()),
    }
    for name, damage in damages.items():
        generated.clear()
        damage()
        assert all(torch.equal(a, b) for a, b in zip(right, loaded("mnist1d"), strict=True)), name
        assert generated == [42], name


def test_generating_leaves_the_callers_generators_alone():
    random.seed(3), np.random.seed(3)
    expected = random.random(), np.random.random()
    random.seed(3), np.random.seed(3)
    data._generate_mnist1d(7)
    assert (random.random(), np.random.random()) == expected


def test_a_wrong_set_is_refused(tmp_path, monkeypatch):
    entries = registry.entries()
    entries["mnist1d"]["labels_sha256"] = "0" * 64
    write_registry(tmp_path, monkeypatch, entries)
    with pytest.raises(data.DataError, match=r"'mnist1d'.*mnist1d .*SHA-256.*registry.json"):
        data.mnist1d.__wrapped__()


def test_words_have_rare_tokens():
    text = data.words()
    counts = torch.bincount(text.tokens)
    assert len(text.tokens) > 80_000 and len(counts) == len(text.vocabulary) > 4_000
    assert (counts == 1).sum() > 1_000
    assert counts[0] == counts.max() and text.vocabulary[text.tokens[0]] in text.vocabulary


def test_words_are_the_frozen_text():
    text = data.words()
    assert len(text.tokens) == 89_292 and len(text.vocabulary) == 4_893
    # as they came from CPython 3.11.7 itself
    tokens = hashlib.sha256(text.tokens.numpy().tobytes()).hexdigest()
    assert tokens == "08a7d232ddc6b699f283e1faeef1a0d416cdff5e032a14e3874eeac27861d44d"
    assert data.checksum("words") == "f9d07f3f772eec0a0d2e0d6c50fe2744e505691fe5c97b594a41e7eb39dbe69a"
    for folder in ("kadam", "lab", "benchmarks", "notebooks"):
        for path in (*(files.ROOT / folder).rglob("*.py"), *(files.ROOT / folder).rglob("*.ipynb")):
            assert "pydoc_data" not in path.read_text(), path


def test_a_changed_or_missing_frozen_text_is_refused(tmp_path, monkeypatch):
    entry = registry.entries()["words"]
    content = bytearray((files.ROOT / "data" / entry["file"]).read_bytes())
    content[1000] ^= 1
    write_registry(tmp_path, monkeypatch, registry.entries())
    monkeypatch.setenv("KADAM_DATA", str(files.ROOT / "data"))  # where the right one lies
    path = tmp_path / "data" / entry["file"]
    with pytest.raises(data.DataError, match="'words'.*missing") as missing:
        data.words.__wrapped__()
    path.write_bytes(content)
    with pytest.raises(data.DataError, match="'words'.*registry.json says") as changed:
        data.words.__wrapped__()
    assert all(str(path) in str(error.value) and entry["sha256"] in str(error.value) for error in (missing, changed))
    assert hashlib.sha256(content).hexdigest() in str(changed.value)


def test_checksum():
    assert len(data.checksum("words")) == 64 and data.checksum("words") != data.checksum("mnist1d")
    with pytest.raises(ValueError, match="name: 'c4'"):
        data.checksum("c4")


def images(count, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)
    return pickle.dumps({b"data": pixels, b"labels": [i % 10 for i in range(count)]}, protocol=3)


WIKITEXT = {"train": " \n = Cats = \n a cat , a <unk> \n", "valid": " a , \n", "test": " cat a \n"}
STAND_INS = {
    "cifar10": {
        f"cifar-10-batches-py/{name}": images(10, seed)
        for seed, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"])
    },
    "wikitext2": {f"wikitext-2/{name}.txt": text.encode() for name, text in WIKITEXT.items()},
    "tinyshakespeare": {"tinyshakespeare/input.txt": b"to be or not to be, to be" * 4},
}


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder on loopback, and keeps what it was asked for."""

    def __init__(self, folder):
        self.asked = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_request(handler, *_):
                self.asked.append(handler.path)

            def log_error(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
        self.folder, self.address = folder, f"http://127.0.0.1:{self.server_port}"

    def address_of(self, path):
        return f"{self.address}/{path.relative_to(self.folder)}"


@pytest.fixture
def server(tmp_path):
    with Server(tmp_path / "there") as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def elsewhere(tmp_path, monkeypatch, server):
    """Small stand-ins of the sets of files, registered, at an address of their own; KADAM_DATA is not set."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    entries = {}
    for name, contents in STAND_INS.items():
        for file, content in contents.items():
            (tmp_path / "there" / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "there" / file).write_bytes(content)
        source = server.address_of((tmp_path / "there" / next(iter(contents))).parent) + "/"
        checksums = {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}
        entries[name] = {"source": source, "files": checksums}
    archive = tmp_path / "there" / "cifar.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "there" / "cifar-10-batches-py", "cifar-10-batches-py")
    entries["cifar10"]["source"] = server.address_of(archive)
    entries["cifar10"]["archive_sha256"] = hashlib.sha256(archive.read_bytes()).hexdigest()
    write_registry(tmp_path / "here", monkeypatch, entries)
    monkeypatch.delenv("KADAM_DATA", raising=False)
    return tmp_path


def loaded(name):
    return getattr(data, name).__wrapped__()


@pytest.mark.parametrize("place", ["KADAM_DATA", "downloaded"])
def test_images_come_in_three_parts(elsewhere, monkeypatch, place):
    if place == "KADAM_DATA":
        monkeypatch.setenv("KADAM_DATA", str(elsewhere / "there"))
    parts = loaded("cifar10")
    assert [len(part) for part in parts] == [45, 45, 5, 5, 10, 10]
    assert parts.x.shape[1:] == (3, 32, 32) and parts.x.dtype == torch.float32 and parts.y.dtype == torch.int64
    torch.testing.assert_close(parts.x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(parts.x.std((0, 2, 3)), torch.ones(3), atol=1e-5, rtol=0)
    fifth, test = (
        pickle.loads(STAND_INS["cifar10"][f"cifar-10-batches-py/{name}"]) for name in ("data_batch_5", "test_batch")
    )
    for x, y, raw in ((parts.x_validation, parts.y_validation, fifth), (parts.x_test, parts.y_test, test)):
        assert y.tolist() == raw[b"labels"][-len(y) :]
        pixels = raw[b"data"][-len(y) :, 1024:2048].reshape(-1, 32, 32).astype(float)  # green
        assert np.corrcoef(x[:, 1].flatten(), pixels.flatten())[0, 1] > 0.99999
    assert (elsewhere / "here" / "data" / "cifar-10-batches-py").exists() == (place == "downloaded")


def test_texts_come_in_three_parts_of_one_vocabulary(elsewhere):
    text = loaded("wikitext2")
    spelled = [" ".join(text.vocabulary[i] for i in part) for part in text[:3]]
    assert spelled == ["<eos> = Cats = <eos> a cat , a <unk> <eos>", "a , <eos>", "cat a <eos>"]
    assert text.vocabulary[:2] == ["<eos>", "a"]
    text = loaded("tinyshakespeare")
    assert "".join(text.vocabulary[i] for part in text[:3] for i in part) == "to be or not to be, to be" * 4
    assert [len(part) for part in text[:3]] == [90, 5, 5]


def test_what_was_downloaded_is_there_for_good(elsewhere):
    first = loaded("wikitext2")
    for file in (elsewhere / "there").rglob("*.txt"):
        file.unlink()
    again = loaded("wikitext2")
    assert all(torch.equal(a, b) for a, b in zip(first[:3], again[:3], strict=True))


def test_processes_that_want_a_set_download_it_once(elsewhere, server, capsys):
    threads = [threading.Thread(target=loaded, args=("cifar10",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.asked == ["/cifar.tar.gz"]
    assert (elsewhere / "here" / "data" / "cifar-10-batches-py" / "test_batch").exists()
    assert capsys.readouterr().err.count("kadam: downloading") == 1


def test_a_download_is_whole_and_readable_by_all(elsewhere, server):
    partial = elsewhere / "here" / "data" / ".wikitext2.partial" / "wikitext-2"
    partial.mkdir(parents=True)
    (partial / "train.txt").write_text("of a process that was killed")
    loaded("wikitext2")
    assert sorted(server.asked) == [f"/wikitext-2/{name}.txt" for name in ("test", "train", "valid")]
    left = [path for path in (elsewhere / "here" / "data").rglob("*") if path.is_file()]
    assert {path.name for path in left} == {"test.txt", "train.txt", "valid.txt", "registry.json", ".wikitext2.lock"}
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in left)


@pytest.mark.parametrize("name", STAND_INS)
def test_a_missing_or_wrong_file_is_named_with_place_and_checksum(elsewhere, monkeypatch, name):
    file, content = next(iter(STAND_INS[name].items()))
    path, checksum = elsewhere / "there" / file, hashlib.sha256(content).hexdigest()
    wrong = content[:-1] + bytes([content[-1] ^ 1])
    monkeypatch.setenv("KADAM_DATA", str(elsewhere / "there"))
    for damage in (lambda: path.write_bytes(wrong), path.unlink):
        damage()
        with pytest.raises(data.DataError) as error:
            loaded(name)
        assert all(text in str(error.value) for text in (name, file, str(elsewhere / "there"), checksum))
    assert not (elsewhere / "here" / "data" / file).exists()  # nothing took its place


def test_a_download_that_fails_leaves_nothing(elsewhere, server):
    def fails(name, *words):
        with pytest.raises(data.DataError) as error:
            loaded(name)
        assert all(word in str(error.value) for word in words)
        assert {path.name for path in (elsewhere / "here").rglob("[!.]*") if path.is_file()} == {"registry.json"}

    file = elsewhere / "there" / "tinyshakespeare" / "input.txt"
    right = registry.entries()["tinyshakespeare"]["files"]["tinyshakespeare/input.txt"]
    file.write_bytes(b"something else")
    found = hashlib.sha256(b"something else").hexdigest()
    fails("tinyshakespeare", "tinyshakespeare/input.txt", server.address_of(file.parent), "KADAM_DATA", right, found)
    file.unlink()
    fails("tinyshakespeare", "tinyshakespeare/input.txt", server.address_of(file.parent), "KADAM_DATA", right, "404")
    (elsewhere / "there" / "wikitext-2" / "test.txt").unlink()  # the last of three
    fails("wikitext2", "wikitext-2/train.txt", "404")
    archive = elsewhere / "there" / "cifar.tar.gz"
    whole = archive.read_bytes()
    for broken in (whole[: len(whole) // 2], b"<html>moved</html>"):
        archive.write_bytes(broken)
        fails("cifar10", "cifar-10-batches-py/data_batch_1", server.address_of(archive))


def test_a_wrong_file_in_a_right_archive_is_refused(elsewhere, monkeypatch):
    entries = registry.entries()
    entries["cifar10"]["files"]["cifar-10-batches-py/test_batch"] = "0" * 64
    write_registry(elsewhere / "here", monkeypatch, entries)
    with pytest.raises(
        data.DataError, match="'cifar10': cifar-10-batches-py/test_batch from .*registry.json says 0000"
    ):
        loaded("cifar10")
    assert not (elsewhere / "here" / "data" / "cifar-10-batches-py").exists()


def test_a_server_that_does_not_answer_is_named(elsewhere, server):
    server.shutdown()
    server.server_close()
    with pytest.raises(data.DataError, match=f"'wikitext2' could not be had from {server.address}/wikitext-2/ "):
        loaded("wikitext2")


def test_a_pickle_that_would_run_something_is_refused():
    class Harm:
        def __reduce__(self):
            return os.getcwd, ()

    with pytest.raises(data.DataError, match="posix.getcwd"):
        data._Arrays(io.BytesIO(pickle.dumps({b"data": Harm()}))).load()


def test_the_checksum_of_files_is_the_registers(elsewhere, monkeypatch):
    monkeypatch.setenv("KADAM_DATA", "/nowhere")
    before = {name: data.checksum.__wrapped__(name) for name in STAND_INS}
    assert len(set(before.values())) == 3
    entries = registry.entries()
    entries["cifar10"]["files"]["cifar-10-batches-py/test_batch"] = "0" * 64
    write_registry(elsewhere / "here", monkeypatch, entries)
    changed = {name for name in STAND_INS if data.checksum.__wrapped__(name) != before[name]}
    assert changed == {"cifar10"}


@pytest.mark.skipif(not os.environ.get("KADAM_DATA"), reason="KADAM_DATA is not set")
def test_the_originals():
    text = data.wikitext2()
    assert [len(part) for part in text] == [2_088_628, 217_646, 245_569, 33_278]  # as published
    text = data.tinyshakespeare()
    assert sum(map(len, text[:3])) == 1_115_394 and len(text.vocabulary) == 65
    parts = data.cifar10()
    assert [len(part) for part in parts] == [45_000] * 2 + [5_000] * 2 + [10_000] * 2
    assert parts.y_test.bincount().tolist() == [1000] * 10
    torch.testing.assert_close(parts.x.std((0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)
