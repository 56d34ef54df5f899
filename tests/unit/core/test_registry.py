"""Entries by name: ours are whatever files lie in a folder, users' are registered."""

from dataclasses import dataclass

import pytest

from llama_dyt.core.errors import ConfigurationError
from llama_dyt.core.registry import Registry

HEAD = """from dataclasses import dataclass

@dataclass(frozen=True)
class Gait:
    name: str
    aliases: tuple = ()
"""


@dataclass(frozen=True)
class Gait:
    name: str
    aliases: tuple[str, ...] = ()


@pytest.fixture
def gaits(tmp_path, monkeypatch, request):
    """The registry of a package of three files, of which one has no entry."""
    package = f"gaits_of_{request.node.name.split('[')[0]}"
    folder = tmp_path / package
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "slow.py").write_text(f"{HEAD}\nGAIT = Gait('walk', ('stroll',))\n")
    (folder / "fast.py").write_text(f"{HEAD}\nGAIT = (Gait('trot'), Gait('full_gallop'))\n")
    (folder / "legs.py").write_text("NUMBER = 4\n")
    monkeypatch.syspath_prepend(tmp_path)
    return Registry("gait", package, "GAIT", flag="gait")


def test_every_file_of_the_folder_is_looked_into_and_no_list_names_them(gaits):
    assert gaits.names() == ("trot", "full_gallop", "walk")
    assert [entry.name for entry in gaits] == list(gaits.names())
    assert gaits.aliases() == {"stroll": "walk"}


@pytest.mark.parametrize("name", ["full_gallop", "Full-Gallop", " FULL_GALLOP"])
def test_letter_case_and_dashes_do_not_matter(gaits, name):
    assert gaits.find(name).name == "full_gallop"


def test_an_alias_leads_to_its_entry(gaits):
    assert gaits.get("Stroll") is gaits.get("walk")


def test_an_unknown_name_is_told_with_the_nearest_and_how_to_bring_in_ones_own(gaits):
    assert gaits.find("trott") is None
    with pytest.raises(ConfigurationError) as caught:
        gaits.get("trott")
    assert str(caught.value) == (
        "--gait: unknown gait 'trott': did you mean 'trot'? (known: trot, full_gallop, walk, stroll); one of your own "
        "is brought in by --import its.module"
    )


def test_a_users_entry_comes_after_ours_and_is_found_as_they_are(gaits):
    mine = gaits.register(Gait("piaffe", ("dance",)))
    assert gaits.names()[-1] == "piaffe" and gaits.get("Dance") is mine
    assert gaits.register(mine) is mine, "the same one again is no other"


@pytest.mark.parametrize("entry", [Gait("walk"), Gait("Walk"), Gait("stroll"), Gait("amble", ("trot",))], ids=str)
def test_a_name_or_alias_that_is_taken_is_refused(gaits, entry):
    with pytest.raises(
        ConfigurationError, match=r"a gait named '.*' is there already \(.*gaits.*\); give yours another name"
    ):
        gaits.register(entry)
    assert gaits.names() == ("trot", "full_gallop", "walk")
