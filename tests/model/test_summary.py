"""The architecture as a table, without allocating the model."""

from gptlab.model.summary import Layer, layers
from gptlab.spec import ModelSpec


def test_layers_of_the_reference_model():
    stream = (-1, 100, 768)
    table = layers(ModelSpec(), sequence_length=100)
    assert table == [
        Layer("Embedding: 1-1", stream, 786_432),
        Layer("Embedding: 1-2", stream, 38_597_376),
        *(Layer(f"TransformerDecoderBlock: 2-{index}", stream, 7_087_872) for index in range(1, 13)),
        Layer(table[-2].label, stream, 1_536),
        Layer(table[-1].label, (-1, 100, 50257), 38_597_376),
    ]
    assert table[-2].label.startswith("LayerNorm: 1-")
    assert table[-1].label.startswith("Linear: 1-")
    assert sum(layer.parameters for layer in table) == 163_037_184


def test_layers_of_a_tied_model_count_the_embedding_once():
    spec = ModelSpec(n_layer=3, n_head=2, n_embd=8, context_length=16, tied=True, bias=False)
    table = layers(spec, sequence_length=5)
    assert sum(layer.parameters for layer in table) == spec.parameters
    assert [layer.label.split(":")[0] for layer in table] == [
        *["Embedding"] * 2,
        *["TransformerDecoderBlock"] * 3,
        "LayerNorm",
    ]


def test_table_does_not_allocate_the_model():
    spec = ModelSpec(n_layer=2, n_head=1, n_embd=2**20)  # 100 TiB
    assert sum(layer.parameters for layer in layers(spec, sequence_length=4)) == spec.parameters > 2**44
