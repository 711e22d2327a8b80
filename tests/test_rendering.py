"""The registry of how values are shown: one renderer for a class and a form, found from anywhere."""

import pytest

from chainfx import rendering
from chainfx.rendering import register_renderer, rendered


class Value:
    pass


class Special(Value):
    pass


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(rendering, "_RENDERERS", {})


def test_a_value_is_shown_by_the_renderer_of_its_class_and_form():
    register_renderer(Value, "text", lambda value: "text")
    register_renderer(Value, "csv", lambda value: "csv")
    assert (rendered(Value(), "text"), rendered(Value(), "csv")) == ("text", "csv")


def test_a_class_without_one_is_shown_as_its_nearest_base():
    register_renderer(Value, "text", lambda value: "value")
    assert rendered(Special(), "text") == "value"
    register_renderer(Special, "text", lambda value: "special")
    assert (rendered(Special(), "text"), rendered(Value(), "text")) == ("special", "value")


def test_a_second_renderer_is_refused():
    register_renderer(Value, "text", lambda value: "text")
    with pytest.raises(ValueError) as caught:
        register_renderer(Value, "text", lambda value: "other")
    assert str(caught.value) == "Value already has a renderer for text; it can have one."


def test_a_value_that_nothing_shows():
    register_renderer(Value, "text", lambda value: "text")
    with pytest.raises(LookupError) as caught:
        rendered(Value(), "html")
    assert str(caught.value) == ("nothing shows a Value as html; import chainfx.report, which registers its renderers.")
