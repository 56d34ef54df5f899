"""Importing a user's modules: which are found, what is said of those that cannot be, what is kept of the others."""

import hashlib
import sys

import pytest

from llama_dyt.core import extensions


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working directory, and a process that has imported nothing of the user's yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(extensions, "_loaded", {})
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_module_is_found_in_the_folder_it_is_called_from(folder):
    (folder / "my_norm_x1.py").write_text("VALUE = 3\n")
    assert extensions.load(["my_norm_x1"]) == []
    assert sys.modules["my_norm_x1"].VALUE == 3
    (found,) = extensions.loaded()
    digest = hashlib.sha256(b"VALUE = 3\n").hexdigest()
    assert (found.name, found.file, found.sha256) == ("my_norm_x1", str(folder / "my_norm_x1.py"), digest)
    assert extensions.names() == ("my_norm_x1",)


def test_a_file_of_the_users_does_not_stand_in_for_a_library(folder):
    (folder / "colorsys.py").write_text("raise RuntimeError('not this one')\n")
    assert extensions.load(["colorsys"]) == []
    assert extensions.loaded()[0].file != str(folder / "colorsys.py")


def test_a_module_is_imported_once_and_those_that_fail_do_not_hide_the_others(folder):
    (folder / "counted_x2.py").write_text("import sys\nsys.counted = getattr(sys, 'counted', 0) + 1\n")
    assert len(extensions.load(["absent_x2", "counted_x2", "counted_x2"])) == 1
    assert extensions.load(["counted_x2"]) == []
    assert sys.counted == 1
    del sys.counted


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "absent_x3",
            None,
            "--import absent_x3: no such module, neither installed nor in {folder}; give its dotted name",
        ),
        ("absent_x3.inner", None, "--import absent_x3.inner: no such module, neither installed nor in {folder}"),
        ("needs_x3", "import no_such_library", "--import needs_x3: it needs 'no_such_library', which is not installed"),
        (
            "broken_x3",
            "1 / 0",
            "--import broken_x3: it failed while it was imported: ZeroDivisionError: division by zero",
        ),
        ("syntax_x3", "def", "--import syntax_x3: it failed while it was imported: SyntaxError: "),
        (
            "ending_x3",
            "raise SystemExit(0)",
            "--import ending_x3: it failed while it was imported: SystemExit: 0; mend the module",
        ),
        (
            "clash_x3",
            "from llama_dyt.core.errors import ConfigurationError\nraise ConfigurationError('a norm named x is there')",
            "--import clash_x3: a norm named x is there",
        ),
    ],
)
def test_what_cannot_be_imported_is_one_line(folder, name, text, message):
    if text is not None:
        (folder / f"{name}.py").write_text(text)
    (problem,) = extensions.load([name])
    assert problem.startswith(message.format(folder=folder)) and "\n" not in problem
    assert problem.flags == ("import",)
    assert extensions.loaded() == ()


def test_a_package_is_known_by_all_its_files(folder):
    package = folder / "package_x4"
    package.mkdir()
    (package / "__init__.py").write_text("from package_x4 import inner\n")
    (package / "inner.py").write_text("VALUE = 1\n")
    extensions.load(["package_x4"])
    (before,) = extensions.loaded()
    extensions._loaded.clear()
    del sys.modules["package_x4"], sys.modules["package_x4.inner"]
    (package / "inner.py").write_text("VALUE = 2\n")
    extensions.load(["package_x4"])
    (after,) = extensions.loaded()
    assert before.file == after.file and before.sha256 != after.sha256


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ("my_norm.py", "give --import my_norm"),
        ("./parts/my_norm.py", "give --import parts.my_norm"),
        ("/elsewhere/my_norm.py", "give --import my_norm, and start in its folder or have that in PYTHONPATH"),
        ("my-norm.py", "give the file a name that a module can have, unlike 'my-norm'"),
    ],
)
def test_of_a_file_the_modules_name_is_told(given, remedy):
    (problem,) = extensions.load([given])
    assert problem == f"--import {given}: this is a file, and a module's name is asked for; {remedy}"


def test_workers_import_what_has_something_for_them_alone(folder):
    (folder / "my_norm_x7.py").write_text("VALUE = 3\n")
    (folder / "my_format_x7.py").write_text(
        "from llama_dyt.core.registry import Registry\n"
        "class Mine: name = 'mine'\n"
        "Registry('thing', None, 'THING', in_workers=True).register(Mine())\n"
    )
    assert extensions.load(["my_norm_x7", "my_format_x7"]) == []
    assert extensions.names() == ("my_norm_x7", "my_format_x7")
    assert extensions.for_workers() == ("my_format_x7",)
