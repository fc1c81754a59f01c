"""Where the parts of a transformer stand in each family of encoders that transformers loads.

All of them are BERT (Devlin et al. 2019, https://arxiv.org/abs/1810.04805) with some parts moved, shared
or added. `family_of` says which, and `layers_of`, `stream_of` and `pool_of` hand out the parts under
one set of names, so that nothing else needs to know one family from another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import Tensor, nn
from transformers.activations import ACT2FN

from pocketlm.errors import TeacherError

Site = tuple[nn.Module, Literal["in", "out"]]
"""A place in a running model: what a module is given, or what it gives."""


@dataclass(frozen=True)
class Family:
    """Paths of a family's parts; those of a layer start at the layer, the others at the encoder's base.

    Args:
        attention: The module that splits hidden units into heads.
        query: Linear map to the queries of all heads; `key` and `value` likewise.
        output: Linear map of the joined heads back to hidden units.
        rising: Linear map into the FFN's neurons; `falling` out of them.
        attention_norm: The attention's LayerNorm: behind its residual sum, before its input with `pre_norm`.
        ffn_norm: Likewise of the FFN.
        stack: The list of layers.
        pool: Linear map of the text's vector in the classification head; from the whole model, where
            `base` stands for the encoder's own name.
        projection: Linear map from embedding units to hidden units, if the model has one.
        norms: Further LayerNorms over hidden units.
        tables: Further embeddings of hidden width.
        position_queries: Further maps to the space of the queries; `position_keys` of the keys.
        pre_norm: LayerNorm stands before attention and FFN, not behind their residual sums.
        shared: One layer, run `num_hidden_layers` times.
        head_bias: An embedding with one column a head, used by all layers, which have to keep the same heads.
        ffn_size: What the config calls the number of neurons.
        activation: What the config calls the FFN's activation.
    """

    attention: str = "attention.self"
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    output: str = "attention.output.dense"
    rising: str = "intermediate.dense"
    falling: str = "output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    ffn_norm: str = "output.LayerNorm"
    stack: str = "encoder.layer"
    pool: str = "base.pooler.dense"
    projection: str | None = None
    norms: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    position_queries: tuple[str, ...] = ()
    position_keys: tuple[str, ...] = ()
    pre_norm: bool = False
    shared: bool = False
    head_bias: str | None = None
    ffn_size: str = "intermediate_size"
    activation: str = "hidden_act"


_BERT = Family()
_ROBERTA = Family(pool="classifier.dense")
FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "electra": Family(pool="classifier.dense", projection="embeddings_project"),
    "mpnet": Family(
        attention="attention.attn",
        query="attention.attn.q",
        key="attention.attn.k",
        value="attention.attn.v",
        output="attention.attn.o",
        attention_norm="attention.LayerNorm",
        pool="classifier.dense",
        head_bias="encoder.relative_attention_bias",
    ),
    "distilbert": Family(
        stack="transformer.layer",
        attention="attention",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        output="attention.out_lin",
        rising="ffn.lin1",
        falling="ffn.lin2",
        attention_norm="sa_layer_norm",
        ffn_norm="output_layer_norm",
        pool="pre_classifier",
        ffn_size="hidden_dim",
        activation="activation",
    ),
    "albert": Family(
        stack="encoder.albert_layer_groups.0.albert_layers",
        attention="attention",
        query="attention.query",
        key="attention.key",
        value="attention.value",
        output="attention.dense",
        rising="ffn",
        falling="ffn_output",
        attention_norm="attention.LayerNorm",
        ffn_norm="full_layer_layer_norm",
        pool="base.pooler",
        projection="encoder.embedding_hidden_mapping_in",
        shared=True,
    ),
    "deberta-v2": Family(
        query="attention.self.query_proj",
        key="attention.self.key_proj",
        value="attention.self.value_proj",
        pool="pooler.dense",
        projection="embeddings.embed_proj",
        norms=("encoder.LayerNorm",),
        tables=("encoder.rel_embeddings",),
        position_queries=("attention.self.pos_query_proj",),
        position_keys=("attention.self.pos_key_proj",),
    ),
    "megatron-bert": Family(
        attention_norm="attention.ln", ffn_norm="ln", norms=("encoder.ln",), pre_norm=True
    ),
}


@dataclass(frozen=True)
class Layer:
    """The modules of one layer, under the names of `Family`.

    Args:
        attention_sum: Where the residual stream stands after attention, before any norm.
        ffn_sum: Likewise after the FFN.
    """

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    rising: nn.Linear
    falling: nn.Linear
    attention_norm: nn.LayerNorm
    ffn_norm: nn.LayerNorm
    position_queries: tuple[nn.Linear, ...]
    position_keys: tuple[nn.Linear, ...]
    attention_sum: Site
    ffn_sum: Site

    @property
    def queries(self) -> tuple[nn.Linear, ...]:
        """All maps to the space of the queries."""
        return self.query, *self.position_queries

    @property
    def keys(self) -> tuple[nn.Linear, ...]:
        """All maps to the space of the keys."""
        return self.key, *self.position_keys

    @property
    def readers(self) -> tuple[nn.Linear, ...]:
        """All maps that read hidden units."""
        return *self.queries, *self.keys, self.value, self.rising


@dataclass(frozen=True)
class Stream:
    """What stands on the hidden units of a model outside its layers.

    Args:
        tables: Embeddings whose rows are hidden units.
        writers: Linear maps that give hidden units.
        norms: LayerNorms over hidden units.
    """

    tables: tuple[nn.Embedding, ...]
    writers: tuple[nn.Linear, ...]
    norms: tuple[nn.LayerNorm, ...]


def family_of(model: nn.Module) -> Family:
    """The family of a model, by its config's `model_type`.

    Raises:
        TeacherError: the model is of a family that no student can be cut out of, or of a rare form of one.
    """
    config = cast(Any, model).config
    found = FAMILIES.get(config.model_type)
    if found is None:
        raise TeacherError(
            f"{type(model).__name__} is of model type {config.model_type}, which no student can be cut out "
            f"of; allowed: {', '.join(FAMILIES)}"
        )
    groups = getattr(config, "num_hidden_groups", 1), getattr(config, "inner_group_num", 1)
    if groups != (1, 1):
        raise TeacherError(
            f"{type(model).__name__} has num_hidden_groups={groups[0]} and inner_group_num={groups[1]}; "
            "only an ALBERT that shares one layer (1 and 1) can be cut"
        )
    return found


def encoder_layers(model: nn.Module) -> nn.ModuleList:
    """The stack of transformer layers, one entry for each that has weights of its own.

    Raises:
        TeacherError: the model is not of the BERT family.
    """
    return cast(nn.ModuleList, _base(model).get_submodule(family_of(model).stack))


def layers_of(model: nn.Module) -> list[Layer]:
    """The parts of every layer that has weights of its own."""
    family = family_of(model)

    def parts(layer: nn.Module) -> Layer:
        def get(path: str) -> Any:
            return layer.get_submodule(path)

        attention_norm, ffn_norm = get(family.attention_norm), get(family.ffn_norm)
        if family.pre_norm:  # the module around the map adds the residual
            sums = [(get(path.rpartition(".")[0]), "out") for path in (family.output, family.falling)]
        else:
            sums = [(attention_norm, "in"), (ffn_norm, "in")]
        names = ("query", "key", "value", "output", "rising", "falling")
        return Layer(
            **{name: get(getattr(family, name)) for name in names},
            attention_norm=attention_norm,
            ffn_norm=ffn_norm,
            position_queries=_present(layer, family.position_queries),
            position_keys=_present(layer, family.position_keys),
            attention_sum=cast(Site, sums[0]),
            ffn_sum=cast(Site, sums[1]),
        )

    return [parts(layer) for layer in encoder_layers(model)]


def attention_modules(model: nn.Module) -> list[nn.Module]:
    """The module of every layer that splits hidden units into heads."""
    path = family_of(model).attention
    return [layer.get_submodule(path) for layer in encoder_layers(model)]


def activation_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """What the FFN does to its neurons."""
    name = getattr(cast(Any, model).config, family_of(model).activation)
    return cast(Any, ACT2FN[name] if isinstance(name, str) else name)


def projection_of(model: nn.Module) -> nn.Linear | None:
    """The map from embedding units to hidden units; None where they are the same."""
    path = family_of(model).projection
    found = _present(_base(model), (path,)) if path else ()
    return cast(nn.Linear, found[0]) if found else None


def embedding_tables(model: nn.Module) -> tuple[nn.Embedding, ...]:
    """The tables whose rows are added up to the embedding of a position: pieces first."""
    names = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    return cast(Any, _present(_base(model), [f"embeddings.{name}" for name in names]))


def stream_of(model: nn.Module) -> Stream:
    """What stands on the hidden units outside the layers and the head."""
    family, base = family_of(model), _base(model)
    norms = list(_present(base, family.norms))
    projection = projection_of(model)
    embedding_norm = _present(base, ("embeddings.LayerNorm",))
    # ELECTRA and ALBERT norm the embedding units, DeBERTa-v2 the hidden units that they are mapped to.
    if projection is None or family.projection == "embeddings.embed_proj":
        norms = [*embedding_norm, *norms]
    return Stream(
        tables=cast(
            Any,
            (*(() if projection is not None else embedding_tables(model)), *_present(base, family.tables)),
        ),
        writers=() if projection is None else (projection,),
        norms=cast(Any, tuple(norms)),
    )


def pool_of(model: nn.Module) -> nn.Linear | None:
    """The first map of the classification head, from hidden units to units of its own, if it has one."""
    prefix = cast(Any, model).base_model_prefix
    found = _present(model, (family_of(model).pool.replace("base.", f"{prefix}."),))
    return cast(nn.Linear, found[0]) if found else None


def head_maps(model: nn.Module) -> tuple[nn.Linear, ...]:
    """The linear maps of the head behind the encoder and the pool."""
    inside = {id(module) for module in _base(model).modules()} | {id(pool_of(model))}
    return tuple(
        module for module in model.modules() if isinstance(module, nn.Linear) and id(module) not in inside
    )


def pooled_maps(model: nn.Module) -> tuple[nn.Linear, ...]:
    """Those of `head_maps` that read the units of the pool; none without a pool."""
    on_words = getattr(model, "word_classifier", None)
    return () if pool_of(model) is None else tuple(each for each in head_maps(model) if each is not on_words)


def hidden_maps(model: nn.Module) -> tuple[nn.Linear, ...]:
    """The linear maps of the head that read hidden units: the pool's, those of words; all without a pool."""
    pool, pooled = pool_of(model), pooled_maps(model)
    return (*([] if pool is None else [pool]), *(each for each in head_maps(model) if each not in pooled))


def _base(model: nn.Module) -> nn.Module:
    return cast(nn.Module, cast(Any, model).base_model)


def _present(root: nn.Module, paths: Any) -> tuple[Any, ...]:
    """The modules at those of the paths that the model has."""
    modules: dict[str, nn.Module] = dict(cast(Any, root.named_modules()))
    return tuple(modules[path] for path in paths if modules.get(path) is not None)
