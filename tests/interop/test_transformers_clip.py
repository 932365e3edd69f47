"""A whole CLIP of transformers goes in and comes back: towers, projections, scale, vocabulary and preprocessing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from efface import interop
from efface.data.dataset import Data
from efface.data.preprocessing_files import find_stated
from efface.errors import EffaceError
from efface.interop.export_weights import export_checkpoint
from efface.training.networks.huggingface_text import SPECIAL_TOKENS
from efface.training.networks.open_clip import make_clip_tokenizer
from efface.training.objectives.clip import Clip
from tests import tiny

transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("open_clip", reason="open_clip is not installed")
LAYERS = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
WORDS = {**LAYERS, "max_position_embeddings": 12, "bos_token_id": 49406, "eos_token_id": 49407}


def vocabulary() -> tuple[dict[Any, int], list[tuple[str, str]]]:
    """CLIP's own, by the names of transformers."""
    known = make_clip_tokenizer(12)
    merges = sorted(known.bpe_ranks, key=lambda pair: known.bpe_ranks[pair])
    return {SPECIAL_TOKENS.get(word, word): number for word, number in known.encoder.items()}, merges


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What save_pretrained of the model and of its processor write."""
    path = tmp_path_factory.mktemp("clip") / "model"
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        projection_dim=6, text_config=WORDS, vision_config={**LAYERS, "image_size": 8, "patch_size": 4}
    )
    net = transformers.CLIPModel(config)
    with torch.no_grad():
        for value in net.parameters():
            value.add_(0.1 * torch.randn_like(value))
    net.save_pretrained(path)
    words, merges = vocabulary()
    pictures = transformers.CLIPImageProcessor(
        size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}, image_mean=[0.3] * 3, image_std=[0.2] * 3
    )
    tokenizer = transformers.CLIPTokenizer(vocab=words, merges=merges, model_max_length=12)
    transformers.CLIPProcessor(image_processor=pictures, tokenizer=tokenizer).save_pretrained(path)
    return path


def data() -> Data:
    x, y = tiny.images(40)
    return Data.from_arrays(x.repeat(3, axis=1), y, text=tiny.captions(y))


@torch.no_grad()
def embed(path: Path, x: torch.Tensor, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """What transformers itself computes from a folder."""
    net = transformers.CLIPModel.from_pretrained(path).eval()
    read = transformers.AutoTokenizer.from_pretrained(path)(captions, return_tensors="pt", padding=True)
    out = net(pixel_values=(x - 0.3) / 0.2, input_ids=read["input_ids"], attention_mask=read["attention_mask"])
    return out.image_embeds, out.text_embeds


@torch.no_grad()
def test_it_is_the_librarys_own_model_in_and_out(folder: Path, tmp_path: Path) -> None:
    loaded = interop.load_checkpoint(folder, data())
    assert loaded.objective == "clip" and not loaded.guessed_objective and loaded.architecture.size == (8, 8)
    assert isinstance(loaded.recipe.objective, Clip) and loaded.recipe.objective.linear
    assert any("as its tokenizer has it" in note for note in loaded.notes)
    model, x, captions = loaded.model.eval(), torch.rand(3, 3, 8, 8), ["a cat", "Two DOGS, and a bird!", "émoji 🙂"]
    for ours, theirs in zip(
        (model.project(model.features(x)), model.encode_text(captions)), embed(folder, x, captions), strict=True
    ):
        torch.testing.assert_close(F.normalize(ours, dim=-1), theirs, atol=1e-5, rtol=1e-4)
    for value in model.parameters():
        value.add_(0.05 * torch.randn_like(value))
    notes = export_checkpoint(loaded.file, model, (), torch.Generator(), tmp_path)
    assert not any("afresh" in note for note in notes.values())
    back = tmp_path / folder.name
    assert {one.name for one in back.iterdir()} == {one.name for one in folder.iterdir()}
    for ours, theirs in zip(
        (model.project(model.features(x)), model.encode_text(captions)), embed(back, x, captions), strict=True
    ):
        torch.testing.assert_close(F.normalize(ours, dim=-1), theirs, atol=1e-5, rtol=1e-4)
    scale = transformers.CLIPModel.from_pretrained(back).logit_scale
    assert model.scale is not None and float(scale) == float(model.scale)


def test_older_files_hold_the_numbers_of_the_places(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    old = tmp_path / "old"
    old.mkdir()
    (old / "config.json").write_bytes((folder / "config.json").read_bytes())
    places = {"text_model.embeddings.position_ids": torch.arange(12)[None]}
    places |= {"vision_model.embeddings.position_ids": torch.arange(5)[None]}
    save_file(load_file(folder / "model.safetensors") | places, old / "model.safetensors")
    loaded = interop.load_checkpoint(old, data())
    assert any("vocabulary, assumed" in note for note in loaded.notes)
    assert any("CLIP's mean" in note for note in loaded.notes)
    (tmp_path / "out").mkdir()
    export_checkpoint(loaded.file, loaded.model, (), torch.Generator(), tmp_path / "out")
    back = load_file(tmp_path / "out" / "old" / "model.safetensors")
    assert all(torch.equal(back[name], value) for name, value in places.items())


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json"])
def test_another_vocabulary_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    words, _ = vocabulary()
    words["cat</w>"], words["dog</w>"] = words["dog</w>"], words["cat</w>"]
    content = words if name == "vocab.json" else {"model": {"vocab": words}}
    (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(EffaceError, match="is not CLIP's"):
        interop.load_checkpoint(tmp_path, data())
    (tmp_path / name).write_text("[1]", encoding="utf-8")
    with pytest.raises(EffaceError, match="vocabulary in"):
        interop.load_checkpoint(tmp_path, data())


def test_the_processor_of_pictures_and_texts_states_how_pictures_are_prepared(folder: Path) -> None:
    name = "processor_config.json"
    stored = json.loads((folder / name).read_text(encoding="utf-8"))
    found = find_stated({name: stored})
    assert found is not None and found.source == name and found.pixels is not None
    assert (found.mean, found.std, found.pixels.crop) == ((0.3,) * 3, (0.2,) * 3, (8, 8))
    assert find_stated({name: {"processor_class": "CLIPProcessor"}}) is None


def test_a_part_of_clip_alone_is_no_pair_of_towers(folder: Path, tmp_path: Path) -> None:
    """Its image tower is an encoder like others."""
    transformers.CLIPModel.from_pretrained(folder).vision_model.save_pretrained(tmp_path / "vision")
    loaded = interop.load_checkpoint(tmp_path / "vision", data(), backbone_only=True)
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        theirs = transformers.CLIPModel.from_pretrained(folder).vision_model.eval()
        expected = theirs(pixel_values=(x - loaded.model.mean) / loaded.model.std).pooler_output
        torch.testing.assert_close(loaded.model.eval().features(x), expected, atol=1e-5, rtol=1e-4)
