"""Networks of the transformers library, built from their configurations: what they do plain, they do converted."""

import copy

import pytest
import torch
from conversions import computes_and_trains, step, takes_states
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BitConfig,
    BitForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from ccn_kernels import CompactConv2d, CompactLinear
from ccn_kernels.convert import calibrate, compact_layers, to_compact

PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
WORDS = {"vocab_size": 50, **SMALL}

# The first three are of full depth, the others small.
NETWORKS = {
    "resnet": lambda: ResNetForImageClassification(ResNetConfig(num_labels=3)),
    "convnext": lambda: ConvNextForImageClassification(ConvNextConfig(num_labels=3)),
    "mobilenet": lambda: MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=3)),
    "vit": lambda: ViTForImageClassification(ViTConfig(num_labels=3, image_size=64, **SMALL)),
    "bert": lambda: BertForSequenceClassification(BertConfig(num_labels=3, **WORDS)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **WORDS)),
}
CONVERTED = {"resnet": 54, "convnext": 59, "mobilenet": 53, "vit": 14, "bert": 14, "llama": 15}


def batch_for(name):
    words = torch.randint(0, 50, (2, 7))
    if name == "llama":
        return {"input_ids": words, "labels": words}
    inputs = {"input_ids": words} if name == "bert" else {"pixel_values": torch.randn(2, 3, 64, 64)}
    return {**inputs, "labels": torch.tensor([0, 2])}


@pytest.fixture(scope="module")
def networks():
    """Each plain network and its conversion, made once; tests take copies where they change one."""
    made = {}

    def get(name):
        if name not in made:
            torch.manual_seed(0)
            plain = NETWORKS[name]()
            made[name] = plain, to_compact(plain)
        return made[name]

    return get


def converts_every_layer(name, plain, compact):
    assert not [module for module in compact.modules() if type(module) in PLAIN]
    assert compact.ccn_report.kept == {}
    assert len(compact.ccn_report.converted) == len(compact_layers(compact)) == CONVERTED[name]
    assert len(compact.ccn_report.converted) == sum(type(module) in PLAIN for module in plain.modules())


def check(networks, name):
    (plain, compact), batch = networks(name), batch_for(name)
    converts_every_layer(name, plain, compact)
    computes_and_trains(plain, compact, batch)
    takes_states(plain, compact, batch)


FEATURE = "{} (transformers), converted: evaluation, a training step, the plain state_dict strictly"


@pytest.mark.behaviour("Models", FEATURE.format("ResNet-50"), conv="works (plain model)")
def test_resnet_50(networks):
    check(networks, "resnet")


@pytest.mark.behaviour("Models", FEATURE.format("ConvNeXt-T"), conv="works (plain model)")
def test_convnext(networks):
    check(networks, "convnext")
    depthwise = [layer for layer in compact_layers(networks("convnext")[1]) if getattr(layer, "groups", 1) > 1]
    assert len(depthwise) == 18


@pytest.mark.behaviour("Models", FEATURE.format("MobileNetV2"), conv="works (plain model)")
def test_mobilenet_v2(networks):
    check(networks, "mobilenet")


@pytest.mark.behaviour("Models", FEATURE.format("ViT"), conv="works (plain model)")
def test_vision_transformer(networks):
    check(networks, "vit")


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.behaviour("Models", FEATURE.format("BERT, and Llama with tied embeddings"), conv="works (plain model)")
def test_language_models(networks, name):
    check(networks, name)


def test_a_tied_output_layer_stays_tied_through_a_step(networks):
    plain, compact = networks("llama")
    compact = copy.deepcopy(compact)
    step(compact, batch_for("llama"))
    assert type(compact.lm_head) is CompactLinear
    assert compact.lm_head.weight is compact.model.embed_tokens.weight
    assert not torch.equal(compact.lm_head.weight, plain.lm_head.weight)
    compact.tie_weights()
    assert compact.lm_head.weight is compact.model.embed_tokens.weight


@pytest.mark.parametrize("name", ["mobilenet", "vit", "llama"])
@pytest.mark.behaviour("Models", "`calibrate` on keyword arguments", conv="has no alpha")
def test_calibration_reaches_every_layer(networks, name, caplog):
    compact = copy.deepcopy(networks(name)[1])
    calibrate(compact, batch_for(name))
    assert not caplog.records
    assert all(layer.alpha != 1 for layer in compact_layers(compact))


@pytest.mark.behaviour(
    "Models", "weight-standardised convolutions (BiT)", conv="are no `nn.Conv2d`", ours="kept, with the reason"
)
def test_weight_standardised_convolutions_are_kept():
    plain = BitForImageClassification(BitConfig(num_labels=3, depths=[1, 1, 1, 1]))
    compact = to_compact(plain)
    assert compact.ccn_report.converted == ["classifier.1"]
    assert all("WeightStandardizedConv2d is a subclass" in reason for reason in compact.ccn_report.kept.values())
    assert len(compact.ccn_report.kept) == sum(isinstance(module, nn.Conv2d) for module in plain.modules())
    assert not any(isinstance(module, CompactConv2d) for module in compact.modules())


def test_the_conv1d_of_gpt_2_is_kept_with_a_reason():
    config = GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=4, bos_token_id=0, eos_token_id=0)
    report = to_compact(GPT2LMHeadModel(config)).ccn_report
    assert report.converted == ["lm_head"]
    assert sorted(report.kept) == [
        f"transformer.h.0.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]
    assert all("pytorch_utils.Conv1D is neither" in reason for reason in report.kept.values())


def test_calibration_names_layers_whose_weights_a_model_reads_itself(caplog):
    """Mamba's kernels take the weights of two of its layers: those would be compact in name only."""
    compact = to_compact(MambaForCausalLM(MambaConfig(num_hidden_layers=1, vocab_size=50, hidden_size=32)))
    caplog.clear()
    calibrate(compact, {"input_ids": torch.randint(0, 50, (2, 7))})
    message = caplog.records[-1].getMessage()
    assert "did not reach backbone.layers.0.mixer.conv1d, backbone.layers.0.mixer.dt_proj:" in message
