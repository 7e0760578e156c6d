"""The config.json of published encoders, by the model's name on the hub.

About a dozen were compared with the hub's own files; the others are from memory, and
held against the parameter count that transformers has for them. Each has what the line of a refusal must match, or ""
where it is read.
"""

_SHAPE = {
  "hidden_act": "gelu",
  "hidden_dropout_prob": 0.1,
  "attention_probs_dropout_prob": 0.1,
  "hidden_size": 768,
  "initializer_range": 0.02,
  "intermediate_size": 3072,
  "num_attention_heads": 12,
  "num_hidden_layers": 12,
}
_BERT = {
  **_SHAPE,
  "architectures": ["BertModel"],
  "layer_norm_eps": 1e-12,
  "max_position_embeddings": 512,
  "model_type": "bert",
  "pad_token_id": 0,
  "position_embedding_type": "absolute",
  "transformers_version": "4.6.0.dev0",
  "type_vocab_size": 2,
  "use_cache": True,
  "vocab_size": 30522,
}
_MINILM = {
  "hidden_size": 384,
  "intermediate_size": 1536,
  "gradient_checkpointing": False,
}
_ROBERTA = {
  **_SHAPE,
  "architectures": ["RobertaForMaskedLM"],
  "bos_token_id": 0,
  "eos_token_id": 2,
  "layer_norm_eps": 1e-5,
  "max_position_embeddings": 514,
  "model_type": "roberta",
  "pad_token_id": 1,
  "type_vocab_size": 1,
  "vocab_size": 50265,
}
_XLM_ROBERTA = {
  **_ROBERTA,
  "architectures": ["XLMRobertaModel"],
  "model_type": "xlm-roberta",
  "output_past": True,
  "position_embedding_type": "absolute",
  "use_cache": True,
  "vocab_size": 250002,
}
_LARGE = {
  "hidden_size": 1024,
  "intermediate_size": 4096,
  "num_attention_heads": 16,
  "num_hidden_layers": 24,
}
_MPNET = {
  **_SHAPE,
  "architectures": ["MPNetForMaskedLM"],
  "bos_token_id": 0,
  "eos_token_id": 2,
  "layer_norm_eps": 1e-5,
  "max_position_embeddings": 514,
  "model_type": "mpnet",
  "pad_token_id": 1,
  "relative_attention_num_buckets": 32,
  "vocab_size": 30527,
}
_DISTILBERT = {
  "activation": "gelu",
  "architectures": ["DistilBertForMaskedLM"],
  "attention_dropout": 0.1,
  "dim": 768,
  "dropout": 0.1,
  "hidden_dim": 3072,
  "initializer_range": 0.02,
  "max_position_embeddings": 512,
  "model_type": "distilbert",
  "n_heads": 12,
  "n_layers": 6,
  "pad_token_id": 0,
  "qa_dropout": 0.1,
  "seq_classif_dropout": 0.2,
  "sinusoidal_pos_embds": False,
  "tie_weights_": True,
  "vocab_size": 30522,
}
_ELECTRA = {
  **_SHAPE,
  "architectures": ["ElectraForPreTraining"],
  "embedding_size": 768,
  "layer_norm_eps": 1e-12,
  "max_position_embeddings": 512,
  "model_type": "electra",
  "pad_token_id": 0,
  "summary_activation": "gelu",
  "summary_last_dropout": 0.1,
  "summary_type": "first",
  "summary_use_proj": True,
  "type_vocab_size": 2,
  "vocab_size": 30522,
}
_SMALL_ELECTRA = {
  "embedding_size": 128,
  "hidden_size": 256,
  "intermediate_size": 1024,
  "num_attention_heads": 4,
}
_ALBERT = {
  **_SHAPE,
  "architectures": ["AlbertForMaskedLM"],
  "attention_probs_dropout_prob": 0,
  "bos_token_id": 2,
  "classifier_dropout_prob": 0.1,
  "down_scale_factor": 1,
  "embedding_size": 128,
  "eos_token_id": 3,
  "gap_size": 0,
  "hidden_act": "gelu_new",
  "hidden_dropout_prob": 0,
  "inner_group_num": 1,
  "layer_norm_eps": 1e-12,
  "max_position_embeddings": 512,
  "model_type": "albert",
  "net_structure_type": 0,
  "num_hidden_groups": 1,
  "num_memory_blocks": 0,
  "pad_token_id": 0,
  "type_vocab_size": 2,
  "vocab_size": 30000,
}
_MODERNBERT = {
  "architectures": ["ModernBertForMaskedLM"],
  "attention_bias": False,
  "attention_dropout": 0.0,
  "bos_token_id": 50281,
  "classifier_activation": "gelu",
  "classifier_bias": False,
  "classifier_dropout": 0.0,
  "classifier_pooling": "mean",
  "cls_token_id": 50281,
  "decoder_bias": True,
  "deterministic_flash_attn": False,
  "embedding_dropout": 0.0,
  "eos_token_id": 50282,
  "global_attn_every_n_layers": 3,
  "global_rope_theta": 160000.0,
  "gradient_checkpointing": False,
  "hidden_activation": "gelu",
  "hidden_size": 768,
  "initializer_cutoff_factor": 2.0,
  "initializer_range": 0.02,
  "intermediate_size": 1152,
  "layer_norm_eps": 1e-5,
  "local_attention": 128,
  "local_rope_theta": 10000.0,
  "max_position_embeddings": 8192,
  "mlp_bias": False,
  "mlp_dropout": 0.0,
  "model_type": "modernbert",
  "norm_bias": False,
  "norm_eps": 1e-5,
  "num_attention_heads": 12,
  "num_hidden_layers": 22,
  "pad_token_id": 50283,
  "position_embedding_type": "absolute",
  "reference_compile": False,
  "sep_token_id": 50282,
  "tie_word_embeddings": True,
  "torch_dtype": "float32",
  "transformers_version": "4.47.0.dev0",
  "vocab_size": 50368,
}
_QWEN3 = {
  "architectures": ["Qwen3ForCausalLM"],
  "attention_bias": False,
  "attention_dropout": 0.0,
  "bos_token_id": 151643,
  "eos_token_id": 151643,
  "head_dim": 128,
  "hidden_act": "silu",
  "hidden_size": 1024,
  "initializer_range": 0.02,
  "intermediate_size": 3072,
  "max_position_embeddings": 32768,
  "max_window_layers": 28,
  "model_type": "qwen3",
  "num_attention_heads": 16,
  "num_hidden_layers": 28,
  "num_key_value_heads": 8,
  "rms_norm_eps": 1e-6,
  "rope_scaling": None,
  "rope_theta": 1000000,
  "sliding_window": None,
  "tie_word_embeddings": True,
  "torch_dtype": "bfloat16",
  "use_cache": True,
  "use_sliding_window": False,
  "vocab_size": 151669,
}
_GEMMA3 = {
  "_sliding_window_pattern": 6,
  "architectures": ["Gemma3TextModel"],
  "attention_bias": False,
  "attention_dropout": 0.0,
  "attn_logit_softcapping": None,
  "bos_token_id": 2,
  "dtype": "float32",
  "eos_token_id": 1,
  "final_logit_softcapping": None,
  "head_dim": 256,
  "hidden_activation": "gelu_pytorch_tanh",
  "hidden_size": 768,
  "initializer_range": 0.02,
  "intermediate_size": 1152,
  "layer_types": [*["sliding_attention"] * 5, "full_attention"] * 4,
  "max_position_embeddings": 2048,
  "model_type": "gemma3_text",
  "num_attention_heads": 3,
  "num_hidden_layers": 24,
  "num_key_value_heads": 1,
  "pad_token_id": 0,
  "query_pre_attn_scalar": 256,
  "rms_norm_eps": 1e-6,
  "rope_local_base_freq": 10000.0,
  "rope_scaling": None,
  "rope_theta": 1000000.0,
  "sliding_window": 512,
  "use_bidirectional_attention": True,
  "use_cache": True,
  "vocab_size": 262144,
}
_LABELS = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}


def _without(config, *names):
  return {name: value for name, value in config.items() if name not in names}


READ = {
  "google-bert/bert-base-uncased": _BERT | {"architectures": ["BertForMaskedLM"]},
  "sentence-transformers/all-MiniLM-L6-v2": _BERT
  | _MINILM
  | {"_name_or_path": "nreimers/MiniLM-L6-H384-uncased", "num_hidden_layers": 6},
  "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2": _BERT
  | _MINILM
  | {"vocab_size": 250037},
  "intfloat/multilingual-e5-small": _BERT
  | _MINILM
  | {"tokenizer_class": "XLMRobertaTokenizer", "vocab_size": 250037},
  "BAAI/bge-small-en-v1.5": _BERT | _MINILM | _LABELS | {"torch_dtype": "float32"},
  "mixedbread-ai/mxbai-embed-large-v1": _BERT
  | _LARGE
  | {"use_cache": False, "classifier_dropout": None, "torch_dtype": "float16"},
  "sentence-transformers/LaBSE": _BERT
  | {
    "directionality": "bidi",
    "pooler_fc_size": 768,
    "pooler_num_attention_heads": 12,
    "pooler_num_fc_layers": 3,
    "pooler_size_per_head": 128,
    "pooler_type": "first_token_transform",
    "vocab_size": 501153,
  },
  "prajjwal1/bert-tiny": {
    **_without(_SHAPE, "num_attention_heads", "num_hidden_layers"),
    "hidden_size": 128,
    "intermediate_size": 512,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "type_vocab_size": 2,
    "vocab_size": 30522,
  },
  "FacebookAI/roberta-base": _ROBERTA,
  "deepset/roberta-base-squad2": _ROBERTA
  | {
    "architectures": ["RobertaForQuestionAnswering"],
    "gradient_checkpointing": False,
    "language": "english",
    "name": "Roberta",
  },
  "vinai/phobert-base": _ROBERTA
  | {
    "max_position_embeddings": 258,
    "tokenizer_class": "PhobertTokenizer",
    "vocab_size": 64001,
  },
  "klue/roberta-large": _ROBERTA
  | _LARGE
  | {"tokenizer_class": "BertTokenizer", "vocab_size": 32000},
  "sentence-transformers/all-distilroberta-v1": _ROBERTA | {"num_hidden_layers": 6},
  "FacebookAI/xlm-roberta-base": _XLM_ROBERTA,
  "BAAI/bge-m3": _XLM_ROBERTA
  | _LARGE
  | {"classifier_dropout": None, "max_position_embeddings": 8194},
  "sentence-transformers/paraphrase-multilingual-mpnet-base-v2": _XLM_ROBERTA
  | {"gradient_checkpointing": False},
  "AlexKay/xlm-roberta-large-qa-multilingual-finedtuned-ru": _XLM_ROBERTA
  | _LARGE
  | {"language": "english", "name": "XLMRoberta"},
  "almanach/camembert-base": _ROBERTA
  | {
    "architectures": ["CamembertForMaskedLM"],
    "bos_token_id": 5,
    "eos_token_id": 6,
    "model_type": "camembert",
    "output_past": True,
    "vocab_size": 32005,
  },
  "airesearch/wangchanberta-base-att-spm-uncased": _ROBERTA
  | {"model_type": "camembert", "layer_norm_eps": 1e-12, "vocab_size": 25005},
  "microsoft/mpnet-base": _MPNET,
  "sentence-transformers/all-mpnet-base-v2": _MPNET
  | {"_name_or_path": "microsoft/mpnet-base", "transformers_version": "4.8.2"},
  "distilbert/distilbert-base-uncased": _DISTILBERT,
  "distilbert/distilbert-base-uncased-finetuned-sst-2-english": _DISTILBERT
  | {
    "architectures": ["DistilBertForSequenceClassification"],
    "finetuning_task": "sst-2",
    "id2label": {"0": "NEGATIVE", "1": "POSITIVE"},
    "output_past": True,
  },
  "sentence-transformers/distiluse-base-multilingual-cased-v2": _DISTILBERT
  | {"architectures": ["DistilBertModel"], "output_past": True, "vocab_size": 119547},
  "google/electra-base-discriminator": _ELECTRA,
  "google/electra-small-generator": _ELECTRA | _SMALL_ELECTRA,
  "Maltehb/-l-ctra-danish-electra-small-cased": _ELECTRA
  | _SMALL_ELECTRA
  | {"classifier_dropout": None, "generator_size": "0.25", "vocab_size": 32000},
  "albert/albert-base-v2": _ALBERT,
  "albert/albert-xxlarge-v2": _ALBERT
  | {
    "hidden_size": 4096,
    "intermediate_size": 16384,
    "layers_to_keep": [],
    "num_attention_heads": 64,
  },
  "sentence-transformers/paraphrase-albert-small-v2": _ALBERT
  | {"embedding_size": 768, "hidden_act": "gelu", "num_hidden_layers": 6},
  "answerdotai/ModernBERT-base": _MODERNBERT
  | {"sparse_pred_ignore_index": -100, "sparse_prediction": False},
  "jhu-clsp/mmBERT-base": _MODERNBERT
  | {
    "bos_token_id": 2,
    "cls_token_id": 1,
    "eos_token_id": 1,
    "local_rope_theta": 160000.0,
    "pad_token_id": 0,
    "position_embedding_type": "sans_pos",
    "vocab_size": 256000,
  },
  "answerdotai/ModernBERT-large, as transformers 5 writes it": _without(
    _MODERNBERT, "global_rope_theta", "local_rope_theta", "global_attn_every_n_layers"
  )
  | {
    "hidden_size": 1024,
    "intermediate_size": 2624,
    "layer_types": [
      "sliding_attention" if i % 3 else "full_attention" for i in range(28)
    ],
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "rope_parameters": {
      "full_attention": {"rope_theta": 160000.0, "rope_type": "default"},
      "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
    },
  },
  "Alibaba-NLP/gte-modernbert-base": _MODERNBERT
  | {"architectures": ["ModernBertModel"], "repad_logits_with_grad": False},
  "jhu-clsp/ettin-encoder-32m": _MODERNBERT
  | {
    "causal_mask": False,
    "hidden_size": 384,
    "intermediate_size": 576,
    "is_causal": False,
    "local_rope_theta": 160000.0,
    "num_attention_heads": 6,
    "num_hidden_layers": 10,
    "position_embedding_type": "sans_pos",
  },
  "cl-nagoya/ruri-v3-30m": _MODERNBERT
  | {
    "bos_token_id": 1,
    "cls_token_id": 6,
    "eos_token_id": 2,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_attention_heads": 4,
    "num_hidden_layers": 10,
    "pad_token_id": 3,
    "vocab_size": 102400,
  },
  "a masked-word head with a matrix of its own": _MODERNBERT
  | {"num_hidden_layers": 4, "tie_word_embeddings": False},
  "nomic-ai/nomic-embed-text-v1.5, as transformers 5.24 writes it": {
    "architectures": ["NomicBertModel"],
    "attention_probs_dropout_prob": 0.0,
    "dtype": "float32",
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 2048,
    "model_type": "nomic_bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"},
    "type_vocab_size": 2,
    "vocab_size": 30528,
  },
  "Qwen/Qwen3-Embedding-0.6B": _QWEN3,
  "Qwen/Qwen3-Embedding-8B": _QWEN3
  | {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "max_position_embeddings": 40960,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "tie_word_embeddings": False,
    "vocab_size": 151665,
  },
  "google/embeddinggemma-300m": _GEMMA3,
  "google/gemma-3-270m, which reads from left to right": _GEMMA3
  | {
    "hidden_size": 640,
    "intermediate_size": 2048,
    "layer_types": [*["sliding_attention"] * 5, "full_attention"] * 3,
    "max_position_embeddings": 32768,
    "num_attention_heads": 4,
    "num_hidden_layers": 18,
    "use_bidirectional_attention": False,
  },
}

REFUSED = {
  # As transformers, it cannot tell what this is.
  "deepset/gbert-base": (
    _without(_BERT, "model_type") | {"vocab_size": 31102},
    "model_type is not there: add it",
  ),
  "zhiheng-huang/bert-base-uncased-embedding-relative-key": (
    _BERT | {"position_embedding_type": "relative_key"},
    "position_embedding_type is 'relative_key'.*: use a model with absolute",
  ),
  "jinaai/jina-embeddings-v2-base-en": (
    _BERT
    | {
      "auto_map": {"AutoModel": "jinaai/jina-bert-implementation--modeling_bert"},
      "emb_pooler": "mean",
      "feed_forward_type": "geglu",
      "position_embedding_type": "alibi",
    },
    "auto_map.*use another",
  ),
  "Alibaba-NLP/gte-base-en-v1.5": (
    _BERT | {"auto_map": {"AutoModel": "modeling.NewModel"}, "model_type": "new"},
    "auto_map.*use another",
  ),
  "nomic-ai/nomic-embed-text-v1.5": (
    {
      "activation_function": "swiglu",
      "auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert"},
      "model_type": "nomic_bert",
      "n_embd": 768,
      "n_head": 12,
      "n_layer": 12,
      "rotary_emb_base": 1000,
      "vocab_size": 30528,
    },
    "auto_map.*transformers knows and saves by itself .nomic_bert from 5.24",
  ),
  "microsoft/deberta-v3-base": (
    _BERT | {"model_type": "deberta-v2", "relative_attention": True},
    "unknown architecture 'deberta-v2'; known are bert, roberta, .*mpnet.*albert",
  ),
  "princeton-nlp/efficient_mlm_m0.40": (
    _ROBERTA | {"model_type": "roberta-prelayernorm"},
    "unknown architecture 'roberta-prelayernorm'",
  ),
  "google-t5/t5-base": ({"model_type": "t5"}, "unknown architecture 't5'; known are"),
  "a decoder of the same name": (
    _BERT | {"is_decoder": True},
    "is_decoder is True, which is not supported",
  ),
  "an activation of its own": (
    _BERT | {"hidden_act": "swiglu"},
    "hidden_act is 'swiglu'.*: use a model with one of gelu, ",
  ),
  "heads that do not divide": (
    _DISTILBERT | {"n_heads": 7},
    "n_heads is 7, not a divisor of dim",
  ),
  "two names of one number": (
    _DISTILBERT | {"num_hidden_layers": 12},
    "num_hidden_layers is 12, not 6, as n_layers",
  ),
  "fewer buckets than distances": (
    _MPNET | {"relative_attention_num_buckets": 16},
    "relative_attention_num_buckets is 16, not a whole number from 32",
  ),
  "layers in groups": (
    _ALBERT | {"num_hidden_groups": 3},
    "num_hidden_groups is 3, not 1",
  ),
  "jhu-clsp/ettin-decoder-150m": (
    _MODERNBERT | {"model_type": "modernbert-decoder"},
    "unknown architecture 'modernbert-decoder'; known are .*modernbert",
  ),
  "nomic-ai/nomic-embed-text-v2-moe": (
    {"auto_map": {"AutoModel": "x"}, "model_type": "nomic_bert", "num_experts": 8},
    "auto_map.*is never run",
  ),
  "intfloat/e5-mistral-7b-instruct": (
    _QWEN3 | {"model_type": "mistral"},
    "unknown architecture 'mistral'; known are",
  ),
  "voyageai/voyage-4-nano, without its code": (
    _QWEN3 | {"use_bidirectional_attention": True},
    "use_bidirectional_attention is True, which is not supported",
  ),
  "quantised weights": (
    _QWEN3 | {"quantization_config": {"bits": 4, "quant_method": "awq"}},
    "quantization_config is .*awq.*, which is not supported",
  ),
  "scaled positions": (
    _QWEN3 | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    "rope_scaling.*yarn.*not supported",
  ),
}
