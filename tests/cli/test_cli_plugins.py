"""The command line without a model: help, families, errors. Nothing heavy may be imported on the way."""

import json

import pytest

HEAVY = "print('HEAVY', sorted({'paddle', 'numpy', 'rich', 'paddlenlp', 'tokenizers'} & set(sys.modules)))"


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--help"], 0),
        (["models"], 0),
        (["models", "parrot"], 0),
        (["models", "parrot", "--explain"], 0),
        (["env"], 0),
        (["finetune", "--help"], 0),
        (["generate", "--help"], 0),
        (["export", "--help"], 0),
        (["bench", "--help"], 0),
        (["finetune", "--print-config"], 0),
        (["--model", "parrot", "finetune", "absent.yaml"], 2),
        (["--model", "parrto", "finetune"], 2),
        (["finetune", "bad.yaml"], 2),
    ],
)
def test_nothing_heavy_is_imported(run_llmctl, tmp_path, args, code):
    (tmp_path / "bad.yaml").write_text("train: {learning_rat: 1}")
    done = run_llmctl(*args, fakes=["third_party", "broken"], cwd=tmp_path, probe=HEAVY)
    assert done.returncode == code, done.stderr
    assert done.stdout.rstrip().endswith("HEAVY []")
    assert "Traceback" not in done.stderr


def test_completion_offers_commands_and_families_without_importing_them(run_llmctl, tmp_path):
    environment = {"_LLMCTL_COMPLETE": "bash_complete", "COMP_CWORD": "2", "COMP_WORDS": "llmctl --model par"}
    done = run_llmctl(fakes=["third_party", "broken"], env=environment, probe=HEAVY)
    assert "plain,parrot" in done.stdout and "HEAVY []" in done.stdout
    environment = {"_LLMCTL_COMPLETE": "bash_complete", "COMP_CWORD": "1", "COMP_WORDS": "llmctl fine"}
    assert "plain,finetune" in run_llmctl(env=environment).stdout


def test_models_lists_broken_plugins_with_version_and_cause(run_llmctl):
    done = run_llmctl(
        "models", "--json", fakes=["third_party", "broken", "typo", "old_api", "duplicate_a", "duplicate_b"]
    )
    assert done.returncode == 0, done.stderr
    rows = {(row["family"], row["distribution"]): row for row in json.loads(done.stdout)}
    assert rows["parrot", "fake-parrot"]["status"] == "ok"
    for key, cause in {
        ("brokenfam", "fake-broken"): "a_module_that_nobody_has",
        ("typofam", "fake-typo"): "descibe_family",
        ("newfam", "fake-old"): "hook API v7",
        ("twin", "fake-dup-a"): "fake-dup-b 2.0.0",
        ("twin", "fake-dup-b"): "fake-dup-a 1.0.0",
    }.items():
        assert rows[key]["status"] == "BROKEN" and cause in rows[key]["note"], rows[key]


def test_every_problem_of_a_card_is_listed(run_llmctl):
    lines = run_llmctl("models", fakes=["bad_card"]).stdout.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("badcard"))
    for cause in ("'latent' is not a field", "unknown placeholder {depth}", "modeling='nowhere'"):
        assert any(cause in line for line in lines[first + 1 : first + 5]), lines


def test_a_family_without_a_starter_says_what_it_has(run_llmctl):
    done = run_llmctl("--model", "opt", "finetune")
    assert done.returncode == 2 and "give CONFIG, or --recipe with one of its recipes: lora" in done.stderr
    done = run_llmctl("--model", "parrot", "finetune", fakes=["third_party"])
    assert done.returncode == 2 and "has no starter recipe; give CONFIG, or --recipe with one of its" in done.stderr
    assert "recipes: sft. --print-config shows every field" in " ".join(done.stderr.split())
    done = run_llmctl("--model", "parrot", "finetune", "--recipe", "lora", fakes=["third_party"])
    assert done.returncode == 2 and "has no recipe 'lora'; it has sft" in done.stderr


def test_explain_shows_every_tensor_with_its_mapping(run_llmctl):
    done = run_llmctl(
        "models", "parrot", "--explain", "--size", "tiny", "--degree", "2", "--json", fakes=["third_party"]
    )
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert len(rows) == 9
    assert rows["parrot.blocks.1.up.weight"] == {
        "name": "parrot.blocks.1.up.weight",
        "shape": "64x64",
        "torch": "transformer.blocks.1.mlp.c_fc.weight",
        "transpose": "yes",
        "split": "axis 1 by ffn",
        "slot": "-",
        "when": "always",
    }
    assert rows["parrot.blocks.0.down.weight"]["transpose"] == "no"
    alone = run_llmctl("models", "parrot", "--degree", "2", fakes=["third_party"])
    assert alone.returncode == 2 and "--degree is for --explain" in alone.stderr


def test_a_family_is_described_by_its_own_module(run_llmctl):
    for name in ("baichuan", "mistral"):
        assert run_llmctl("models", name).stdout.lower().startswith(name)


def test_misspelt_command_names_the_nearest(run_llmctl):
    done = run_llmctl("finetnue")
    assert done.returncode == 2 and "did you mean 'finetune'?" in done.stderr


def test_unknown_family_says_how_to_install_it(run_llmctl):
    done = run_llmctl("--model", "parrto", "finetune", fakes=["third_party"])
    assert done.returncode == 2
    assert "Did you mean 'parrot'?" in done.stderr and "llmctl new-plugin parrto" in done.stderr
