"""The tests lie as the code does, so that a reader finds what holds a file by its path."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
NO_ROOMS = {"golden", "plugin"}  # texts that tests compare with, and a package that they install


def folders(root):
    """The folders with Python files below a folder, by their path from there."""
    return {str(file.parent.relative_to(root)) for file in root.rglob("*.py")} - {"."}


def test_every_folder_of_tests_is_a_room_and_every_room_has_one():
    rooms = folders(ROOT / "chainfx")
    tested = {path for path in folders(ROOT / "tests") if path.split("/")[0] not in NO_ROOMS}
    assert tested <= rooms
    outer = {room for room in rooms if "/" not in room} | {room for room in rooms if room.startswith("ir/")}
    assert outer - tested == {"ir/channels/rules"}  # a rule is seen in the networks of tests/ir/channels
