"""Which words of `mu synthesize --reconstruct` are files, and which a split."""

from __future__ import annotations

from pathlib import Path

import pytest

from medunifier_cli.options.synthesis import HELD_OUT, own_films


@pytest.mark.parametrize(
    ("files", "reconstructed", "films"),
    [
        ((), "", []),
        ((), HELD_OUT, []),
        ((), "valid", []),
        (("a.png",), HELD_OUT, ["a.png"]),
        # missing files are files all the same, so that a message can name them
        ((), "missing.png", ["missing.png"]),
        ((), "films/missing", ["films/missing"]),
        (("a.png",), "missing.png", ["missing.png", "a.png"]),
        (("a.png",), "valid", ["valid", "a.png"]),
    ],
)
def test_the_first_file_may_be_typed_as_the_value(
    files: tuple[str, ...], reconstructed: str, films: list[str]
) -> None:
    assert own_films(tuple(map(Path, files)), reconstructed) == list(map(Path, films))


def test_a_file_without_an_ending_is_one_where_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert own_films((), "film") == []
    Path("film").write_bytes(b"")
    assert own_films((), "film") == [Path("film")]
