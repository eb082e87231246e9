"""Where models come from: folders, packages, GGUF files (a tiny one is written here), and what is said where none is."""

import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FNetConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    MambaConfig,
    MptConfig,
    RobertaConfig,
    RobertaModel,
    T5Config,
)

from finemesh.errors import FieldError, InputError
from finemesh.tuning import models
from finemesh.tuning.models import (
    ModelSource,
    context_length,
    fetch,
    find_model,
    load_model,
    load_skeleton,
    load_tokenizer,
)
from tests import tiny

NAMES = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
LAYER = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
         "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FINEMESH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "cache" / "models"


@pytest.fixture
def folder(tmp_path) -> Path:
    tiny.causal().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def write_gguf(path: Path) -> None:
    """The tiny Llama as llama.cpp's converter writes one (q and k permuted for its rotary order)."""
    model = tiny.causal(head_dim=8)
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    for set_field, value in ((writer.add_context_length, 128), (writer.add_embedding_length, 32), (writer.add_block_count, 2),
                             (writer.add_feed_forward_length, 48), (writer.add_head_count, 4), (writer.add_head_count_kv, 2),
                             (writer.add_layer_norm_rms_eps, config.rms_norm_eps), (writer.add_rope_dimension_count, 8),
                             (writer.add_vocab_size, tiny.VOCABULARY), (writer.add_rope_freq_base, 10000.0)):
        set_field(value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxy", "ab"])
    writer.add_token_types([3] * 3 + [1] * 26)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(0)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        array = tensor.numpy()
        if "q_proj" in name or "k_proj" in name:
            heads = 4 if "q_proj" in name else 2
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    if name in NAMES:
        return NAMES[name]
    _, _, number, rest = name.split(".", 3)
    return f"blk.{number}.{LAYER[rest.removesuffix('.weight')]}.weight"


def test_a_gguf_file_is_converted_once_and_whole(tmp_path, cache):
    write_gguf(tmp_path / "tiny.gguf")
    source = find_model(str(tmp_path / "tiny.gguf"))
    stamp = (Path(source.location) / "model.safetensors").stat().st_mtime_ns
    assert find_model(str(tmp_path / "tiny.gguf")) == source
    assert (Path(source.location) / "model.safetensors").stat().st_mtime_ns == stamp
    assert source.public_name == "tiny.gguf"
    assert Path(source.location).stat().st_mode == cache.stat().st_mode  # others may read it, too
    assert len({file.stat().st_mode for file in Path(source.location).iterdir()}) == 1
    ids = torch.arange(6, 20)[None]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    with torch.no_grad():
        expected = tiny.causal()(ids).logits
        torch.testing.assert_close(load_model(source, "instruct")(ids).logits, plain(ids).logits, rtol=0, atol=0)
        torch.testing.assert_close(plain(ids).logits, expected, rtol=1e-4, atol=1e-5)
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [Path(source.location).name]


def test_a_conversion_that_breaks_leaves_nothing(tmp_path, cache, monkeypatch):
    write_gguf(tmp_path / "tiny.gguf")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with pytest.raises(InputError, match="could not be converted from GGUF"):
        find_model(str(tmp_path / "tiny.gguf"))
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_a_file_that_is_no_gguf(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and then nothing")
    with pytest.raises(InputError, match=r"broken.gguf could not be converted"):
        find_model(str(tmp_path / "broken.gguf"))


def test_a_folder(folder):
    source = find_model(str(folder))
    assert source.public_name == "model"  # no path of this machine
    assert load_tokenizer(source).pad_token == "<pad>"
    model = load_model(source, "instruct", dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert not any(p.requires_grad for p in model.parameters())


def test_a_folder_from_here_is_no_hub_name(folder, monkeypatch):
    monkeypatch.chdir(folder.parent.parent)
    assert find_model(f"{folder.parent.name}/model").public_name == "model"


def test_a_folder_in_the_hubs_cache_has_the_hubs_name(folder, tmp_path):
    snapshot = tmp_path / "hub" / "models--maker--small--one" / "snapshots" / "0a1b"
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    assert find_model(str(snapshot)).public_name == "maker/small--one"


def test_a_hub_model_that_is_not_here_yet_is_said(folder, tmp_path, monkeypatch):
    cached = tmp_path / "hub" / "models--maker--small"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text("0a1b")
    (cached / "snapshots").mkdir()
    folder.rename(cached / "snapshots/0a1b")
    weights = cached / "snapshots/0a1b/model.safetensors"
    weights.rename(tmp_path / "weights")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    said = []
    with pytest.raises(FieldError, match="the weights of maker/small cannot be downloaded"):
        fetch(find_model("maker/small"), "instruct", said.append)
    assert said == ["maker/small is downloaded from the hub, once: a large model takes minutes ..."]
    (tmp_path / "weights").rename(weights)
    fetch(find_model("maker/small"), "instruct", said.append)
    assert len(said) == 1


def test_a_shard_that_is_missing_is_named_at_once(folder):
    tiny.causal().save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(InputError, match=f"{shard.name} is damaged or missing"):
        find_model(str(folder))


def test_weights_that_fail_later_are_the_users_to_mend(folder):
    source = find_model(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"the weights of .*model cannot be loaded"):
        load_model(source, "instruct")


def test_a_new_head_is_drawn_from_its_seed(folder):
    source = find_model(str(folder))
    heads = [load_model(source, "classify", labels=["a", "b", "c"], head_seed=seed).score.weight for seed in (0, 0, 1)]
    assert heads[0].shape == (3, 32)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_checkpoint_of_another_number_of_labels(tmp_path):
    tiny.classifier().save_pretrained(tmp_path / "two")
    source = find_model(str(tmp_path / "two"))
    for task, labels, outputs in (("classify", ["a", "b", "c"], 3), ("regress", [], 1)):
        model = load_model(source, task, labels=labels)
        assert model.classifier.out_features == outputs
        assert model.drawn_layers == load_skeleton(source, task, labels=labels).drawn_layers == ["classifier"]


@pytest.mark.parametrize(("names", "labels", "order"), [
    (["yes", "no"], ["no", "yes"], [1, 0]), (["LABEL_0", "LABEL_1"], ["no", "yes"], [0, 1]),
    (["bad", "good"], ["0", "1"], [0, 1]), (["bad", "good"], ["no", "yes"], None)])
def test_a_checkpoint_s_own_head_follows_our_labels(tmp_path, names, labels, order):
    saved = tiny.classifier()
    saved.config.id2label, saved.config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    torch.nn.init.normal_(saved.classifier.bias)
    saved.save_pretrained(tmp_path / "model")
    model = load_model(find_model(str(tmp_path / "model")), "classify", labels=labels)
    for found, before in zip(model.classifier.parameters(), saved.classifier.parameters(), strict=True):
        assert not torch.equal(found, before) if order is None else torch.equal(found, before[order])
    assert model.config.id2label == dict(enumerate(labels))


def test_a_package(folder, tmp_path, monkeypatch):
    package = tmp_path / "site" / "some_model"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('it is not imported')")
    folder.rename(package / "weights")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    assert find_model("package:some-model") == models.ModelSource(
        "package:some-model", str(package / "weights"), "package:some-model")


def test_a_skeleton_has_no_weights(folder):
    skeleton = load_skeleton(find_model(str(folder)), "instruct")
    assert {p.device.type for p in skeleton.parameters()} == {"meta"}


@pytest.mark.parametrize(("name", "message"), [
    ("package:not-there", "the package 'not_there' is not installed"),
    ("./not/there", "there is no folder ./not/there"),
    ("/not/there.gguf", "there is no file /not/there.gguf"),
    ("nobody/no-such-model", "neither a folder here nor a model that the hub gives"),
])
def test_a_model_that_is_not_there(name, message):
    with pytest.raises(InputError, match=message):
        find_model(name)


def test_a_folder_that_is_no_model(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no config.json"):
        find_model(str(tmp_path / "empty"))


@pytest.mark.parametrize(("file", "content", "said"), [
    ("model.safetensors", None, "holds no weights"),
    ("model.safetensors", b"x" * 200, r"model.safetensors is damaged or missing \(.+\). Get the model again"),
    ("config.json", b"{nope", "the config.json of .* cannot be used"),
])
def test_a_folder_in_which_something_is_missing_or_damaged(tmp_path, file, content, said):
    tiny.causal().save_pretrained(tmp_path)
    (tmp_path / file).unlink() if content is None else (tmp_path / file).write_bytes(content)
    with pytest.raises(FieldError, match=f"model: .*{said}"):
        find_model(str(tmp_path))


def test_a_tokenizer_that_can_pad_with_nothing(tmp_path):
    tiny.causal().save_pretrained(tmp_path)
    words = tiny.tokenizer()
    words.pad_token = words.eos_token = None
    words.save_pretrained(tmp_path)
    with pytest.raises(FieldError, match=r"model: the tokenizer of .* has neither a padding token nor"):
        load_tokenizer(find_model(str(tmp_path)))


def test_a_padding_token_that_the_model_does_not_know(tmp_path):
    tiny.causal().save_pretrained(tmp_path)
    words = tiny.tokenizer()
    words.add_special_tokens({"pad_token": "[PAD]"})
    words.save_pretrained(tmp_path)
    assert load_tokenizer(find_model(str(tmp_path))).pad_token == "</s>"


def test_a_folder_without_a_tokenizer(tmp_path):
    tiny.causal().save_pretrained(tmp_path)
    with pytest.raises(FieldError, match=r"model: the tokenizer of .* cannot be loaded .* beside config.json"):
        load_tokenizer(find_model(str(tmp_path)))


def test_an_encoder_does_not_write(tmp_path):
    tiny.classifier().save_pretrained(tmp_path / "encoder")
    source = find_model(str(tmp_path / "encoder"))
    with pytest.raises(InputError, match="is an encoder and cannot write answers"):
        load_model(source, "instruct")


@pytest.mark.parametrize(("config", "task", "reason"), [
    (T5Config(), "instruct", r"\(t5\) is an encoder with a decoder; task: instruct needs a causal model"),
    (MambaConfig(), "classify", r"no classifier or regressor of .* \(mamba\)\. .* with labels as answers, task: instruct"),
    (FNetConfig(), "regress", r"\(fnet\) mixes padding into its rows")])
def test_a_model_that_cannot_do_the_task(tmp_path, config, task, reason):
    config.save_pretrained(tmp_path)
    with pytest.raises(FieldError, match=reason):
        models.check_task(ModelSource("it", str(tmp_path), "it"), task)


def test_a_model_that_also_sees_writes_and_classifies(tmp_path):
    """Gemma 3 from 4B on: what it says of its text lies in a configuration of its own."""
    text = {"vocab_size": tiny.VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
              "patch_size": 8}
    Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)).save_pretrained(
        tmp_path / "model")
    source = find_model(str(tmp_path / "model"))
    assert models.context_of(source) == 128
    for task in ("instruct", "classify"):
        model = load_model(source, task, labels=tiny.LABELS, pad_id=0)
        assert context_length(load_skeleton(source, task, labels=tiny.LABELS).config) == 128
        ids = torch.tensor([[6, 7, 8], [9, 0, 0]])
        assert model(ids).logits.shape == ((2, 3, tiny.VOCABULARY) if task == "instruct" else (2, 2))


def test_the_longest_row_that_a_model_takes():
    config = RobertaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
                           max_position_embeddings=20)
    model, longest = RobertaModel(config), torch.full((1, context_length(config)), 5)
    assert model(longest).last_hidden_state.shape[1] == longest.size(1) == 18
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, longest.size(1) + 1), 5))
    assert context_length(tiny.causal().config) == tiny.causal().config.max_position_embeddings
    assert context_length(MptConfig(max_seq_len=20)) == 20
