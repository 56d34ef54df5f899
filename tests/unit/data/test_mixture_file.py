"""A mixture's YAML is read exactly, and all that is wrong with it is told at once."""

from fractions import Fraction
from pathlib import Path

import pytest

from llama_dyt.config.cli import read
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.data.order.mixture import MixtureSchedule
from llama_dyt.data.order.mixture_file import is_mixture, read_mixture
from llama_dyt.training.plan.global_batch import with_global_batch
from llama_dyt.training.settings import tokens_per_step

REPOSITORY = Path(__file__).resolve().parents[3]
RECIPES = sorted((REPOSITORY / "configs" / "mixtures").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_mixture_that_is_shipped_can_be_read(path):
    mixture = read_mixture(path)
    for source in mixture.sources:
        assert Path(source.path).is_absolute() and "/data/" in source.path
    MixtureSchedule([source.weight for source in mixture.sources]).next()


def shares(name):
    sources = read_mixture(REPOSITORY / "configs" / "mixtures" / f"{name}.yaml").sources
    total = sum(source.weight for source in sources)
    return {source.name: float(source.weight / total) for source in sources}


def test_shipped_mixtures_have_the_published_shares():
    red_pajama = shares("redpajama")
    assert len(red_pajama) == 7
    assert red_pajama["common_crawl"] == 878 / 1210 and red_pajama["stackexchange"] == 20 / 1210
    llemma = shares("llemma")
    assert (round(llemma["pile_sample"], 4), round(llemma["code_redpajama"], 4)) == (0.02, 0.03)
    assert llemma["open_web_math"] == pytest.approx(2 * llemma["arxiv"])
    assert shares("wiki_cc") == {"wiki": 0.9091, "cc_en": 0.0909}


def test_the_llemma_recipe_takes_its_batch_and_does_not_decay_norms():
    run, problems = read("pretrain", ["--config_file", str(REPOSITORY / "configs" / "llemma_7b.yaml")])
    assert problems == []
    assert tokens_per_step(with_global_batch(run, 64), 64) == 4_194_304
    assert run.optimizer.decay_all_parameters is False
    assert read_mixture(REPOSITORY / run.data.dataset).is_endless


def write(folder, text):
    path = folder / "mixture.yaml"
    path.write_text(text)
    return path


def test_sources_weights_and_defaults(tmp_path):
    (tmp_path / "wiki").mkdir()
    mixture = read_mixture(
        write(
            tmp_path,
            "sources:\n"
            "  wiki: {path: wiki, weight: 0.147368, epochs: 2, shuffle: documents, validation: held/out.jsonl}\n"
            "  c4: {path: /data/c4/*.gz, weight: 2/3}\n"
            "  hub: owner/name\n",
        )
    )
    wiki, c4, hub = mixture.sources
    assert (wiki.name, wiki.path, wiki.epochs, wiki.shuffle) == ("wiki", str(tmp_path / "wiki"), 2, "documents")
    assert wiki.weight == Fraction(147368, 10**6)
    assert wiki.validation == str(tmp_path / "held/out.jsonl")
    assert (c4.path, c4.weight, c4.epochs, c4.shuffle) == ("/data/c4/*.gz", Fraction(2, 3), None, None)
    assert (hub.path, hub.weight) == ("owner/name", 1)
    assert mixture.is_endless


def test_a_list_is_named_after_its_paths_unless_it_has_names(tmp_path):
    text = "sources:\n- {path: /a/b/c, epochs: 1}\n- {path: x.jsonl, name: x, epochs: 1}\n"
    mixture = read_mixture(write(tmp_path, text))
    assert [source.name for source in mixture.sources] == ["/a/b/c", "x"]
    assert mixture.sources[1].path == str(tmp_path / "x.jsonl")
    assert not mixture.is_endless


def test_all_problems_are_told_together_with_file_and_key(tmp_path):
    path = write(
        tmp_path,
        "seed: 3\n"
        "sources:\n"
        "  a: {wieght: 1, path: /d/a/x}\n"
        "  b: {path: /d/b/x, weight: -1, epochs: 0, shuffle: document}\n"
        "  c: {weight: heavy}\n"
        "  d: 7\n"
        "  e: {path: other.yaml}\n",
    )
    with pytest.raises(ConfigurationError) as caught:
        read_mixture(path)
    problems = caught.value.problems
    assert all(problem.startswith(f"{path}: ") for problem in problems)
    expected = [
        "unknown key 'seed'",
        "a: unknown key 'wieght': did you mean 'weight'?",
        "b: weight: -1 is not above 0",
        "b: epochs: 0 is no whole number",
        "b: shuffle: unknown order 'document': did you mean 'documents'?",
        "c: path: missing",
        "c: weight: 'heavy' is no number",
        "d: 7 is no mapping",
        "e: path: other.yaml is itself a mixture",
    ]
    for part in expected:
        assert sum(part in problem for problem in problems) == 1, part
    assert len(problems) == len(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "absent or empty"),
        ("sources: []", "absent or empty"),
        ("sources: 3", "a int"),
        ("sources: [7]", "entry 1: 7 is no mapping"),
        ("sources: [{path: /a/b/c}, {path: /a/b/c}]", "two are named '/a/b/c'"),
        ("sources: {a: 1, a: 2}", "key 'a' stands twice"),
        ("sources: {a: {path: ''}}", "'' is no path"),
        ("sources: {a: {path: x/y/z, weight: yes}}", "True is no number"),
        ("sources: {a: {path: x/y/z, validation: 0.1}}", "--validation_fraction holds out a share"),
    ],
)
def test_a_file_that_is_no_mixture_is_refused(tmp_path, text, message):
    with pytest.raises(ConfigurationError, match=message):
        read_mixture(write(tmp_path, text))


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(ConfigurationError, match="no such file"):
        read_mixture(tmp_path / "absent.yaml")


def test_what_names_a_mixture():
    assert is_mixture("a/b.yaml") and is_mixture("b.yml")
    assert not is_mixture("a.jsonl") and not is_mixture(None)
