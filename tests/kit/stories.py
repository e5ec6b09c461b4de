"""The small trained model of the assets with the tokenizer that its recorded text was made with."""

import json
import shutil


def story_model(assets, folder):
    """A copy of the model whose tokenizer is tokenizer.model, and the recording.

    The decoder of its tokenizer.json keeps the space that begins the text.
    """
    source = assets / "models" / "stories260K"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("tokenizer.json"), copy_function=shutil.copyfile)
    return folder, json.loads((folder / "golden_text.json").read_text())
