"""The names of a table's columns in a message are never a patient's texts."""

from medunifier_plugins.raw.tables import column_names


def test_names_are_told() -> None:
    assert column_names(["uid", "MeSH", "Problems", "image"]) == "uid, MeSH, Problems, image"
    assert column_names([]) == "none"


def test_a_row_of_texts_in_place_of_the_header_is_not_told() -> None:
    for text in (
        "The heart is normal.",
        "Is this a fracture?",
        "Opacity/lung/left;Cardiomegaly",
        "heart " * 30,
    ):
        told = column_names(["1", "Xray", text, "Normal"])
        assert told == "4 that do not read as names"
