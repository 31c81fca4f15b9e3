import matplotlib.pyplot as plt
import pytest
from IPython.display import Image, Markdown

from lab import display, figures
from lab.claims import Page
from lab.display import Table


def test_a_table_is_html_for_readers_and_text_for_logs():
    made = Table(("name", "|C| < 1"), [("a", 1.5), ("long name", "<b>")], note="*Note*: so.")
    assert "&lt;b&gt;" in made._repr_html_() and "<em>Note</em>: so." in made._repr_html_()
    assert [line.split() for line in repr(made).splitlines()[1:3]] == [["a", "1.5"], ["long", "name", "<b>"]]
    assert Table(("a",), [])._repr_html_().count("<td") == 0


def test_a_long_cell_is_not_cut():
    long = "word " * 40 + "end"
    made = Table(("a",), [(long,)])
    assert long in repr(made) and long in made._repr_html_()


@pytest.fixture
def shown(monkeypatch):
    seen = []
    for module in (display, figures):
        monkeypatch.setattr(module, "display", lambda *things: seen.extend(things))
    return seen


def test_a_table_and_a_source_are_shown(shown):
    display.table(("a",), [(1,)])
    display.show_source(Table)
    assert repr(shown[0]).split() == ["a", "1"] and "class Table" in shown[1].data


def test_a_figure_has_caption_and_alt_text_and_is_written(shown, tmp_path, monkeypatch):
    monkeypatch.setenv("KADAM_OUTPUT", str(tmp_path))
    figures.save(plt.figure(figsize=(4, 3)), "one", caption="It grows.", alt="A line that rises.")
    image, caption = shown
    assert isinstance(image, Image) and image.alt == "A line that rises." and caption.data == "*It grows.*"
    assert (tmp_path / "figures" / "one.png").read_bytes() == image.data and not plt.get_fignums()


def test_the_first_screens_figure_is_kept_for_it(shown, monkeypatch):
    monkeypatch.delenv("KADAM_OUTPUT", raising=False)
    page = Page("tiny")
    figures.save(plt.figure(), "one", caption="It grows.", alt="A line.", page=page)
    image, caption = page.figure
    assert image.alt == "A line." and isinstance(caption, Markdown) and shown == []


@pytest.mark.parametrize("words", [{"caption": " ", "alt": "A line."}, {"caption": "It grows.", "alt": ""}])
def test_a_figure_without_words_is_refused(words):
    with pytest.raises(ValueError, match="one: caption and alt"):
        figures.save(plt.figure(), "one", **words)
