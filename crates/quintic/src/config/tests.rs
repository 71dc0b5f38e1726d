use std::path::PathBuf;

use super::*;
use crate::ErrorKind;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../testdata/configs")
}

fn load(name: &str) -> T5Config {
    T5Config::from_file(&folder().join(format!("{name}.json"))).unwrap()
}

fn error(json: &str) -> Error {
    T5Config::from_json(json.as_bytes()).unwrap_err()
}

/// A config with the shape fields and whatever else is given.
fn with(extra: &str) -> String {
    format!(
        r#"{{"model_type":"t5","vocab_size":100,"d_model":16,"d_kv":8,"d_ff":32,"num_layers":2,"num_heads":2{extra}}}"#
    )
}

#[test]
fn every_published_config_loads_and_accounts_for_every_field() {
    let mut n_loaded = 0;
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            let config = T5Config::from_file(&path).unwrap();
            let unknown: Vec<_> = config.unused_fields.iter().filter(|f| f.unknown).collect();
            assert!(unknown.is_empty(), "{}: {unknown:?}", path.display());
            n_loaded += 1;
        }
    }
    assert_eq!(n_loaded, 35, "testdata/configs holds 35 model configs");
}

#[test]
fn the_oldest_config_gets_the_family_defaults() {
    let config = load("google-t5__t5-small");
    assert_eq!(config.family, Some(Family::T5));
    assert_eq!(
        config.feed_forward,
        FeedForward {
            gated: false,
            activation: Activation::Relu
        }
    );
    assert_eq!((config.num_layers, config.num_decoder_layers), (6, 6));
    assert_eq!(config.relative_attention_max_distance, 128);
    assert_eq!(config.tie_word_embeddings, None);
}

#[test]
fn feed_forward_traps() {
    let gated = |activation| FeedForward {
        gated: true,
        activation,
    };
    assert_eq!(
        load("t5-v1_1-xxl").feed_forward,
        gated(Activation::GeluTanh)
    );
    // Says `gelu` and `is_gated_act: true`: the erf form, as transformers computes it.
    let odd = load("google__flan-t5-xxl_18f1ad8_odd");
    assert_eq!(odd.feed_forward, gated(Activation::GeluErf));
    assert_eq!(odd.warnings.len(), 1, "{:?}", odd.warnings);
    // Copies without `feed_forward_proj`.
    for name in [
        "flux1-dev_text_encoder_2_t5-v1_1-xxl",
        "chroma_text_encoder_t5-xxl",
    ] {
        assert_eq!(load(name).feed_forward, gated(Activation::GeluTanh));
        assert!(load(name).warnings.is_empty());
    }
    let silu = T5Config::from_json(with(r#","feed_forward_proj":"gated-silu""#).as_bytes());
    assert_eq!(silu.unwrap().feed_forward, gated(Activation::Silu));
    // Only the whole text `gated-gelu` means tanh.
    let erf = T5Config::from_json(with(r#","feed_forward_proj":"gelu""#).as_bytes());
    assert_eq!(
        erf.unwrap().feed_forward,
        FeedForward {
            gated: false,
            activation: Activation::GeluErf
        }
    );
}

#[test]
fn families_and_odd_shapes() {
    assert_eq!(
        load("google__umt5-small_84afba6").family,
        Some(Family::Umt5),
        "no model_type"
    );
    assert_eq!(
        load("hunyuandit_text_encoder_2_mt5-xl").family,
        Some(Family::T5)
    );
    assert_eq!(load("google__mt5-small_copy").family, Some(Family::Mt5));
    let prot = load("rostlab__ProstT5");
    assert_eq!(
        (prot.d_model, prot.inner_dim(), prot.vocab_size),
        (1024, 4096, 150)
    );
    let byt5 = load("google__byt5-small");
    assert_eq!((byt5.num_layers, byt5.num_decoder_layers), (12, 4));
    let madlad = load("google__madlad400-3b-mt");
    assert_eq!(
        (madlad.decoder_start_token_id, madlad.pad_token_id),
        (Some(0), Some(1))
    );
    assert_eq!(madlad.eos_token_ids, [2]);
    let saved_by_5 = load("flan-t5-small_saved_by_transformers_5");
    assert_eq!(saved_by_5.tie_word_embeddings, Some(true));
    assert_eq!(saved_by_5.scale_decoder_outputs, Some(false));
    assert_eq!(saved_by_5.torch_dtype.as_deref(), Some("float32"));
}

/// As in transformers, whose defaults they are.
#[test]
fn tokens_that_a_config_does_not_name() {
    let config = T5Config::from_json(with("").as_bytes()).unwrap();
    assert_eq!(config.pad_token_id, Some(0));
    assert_eq!(config.eos_token_ids, [1]);
    let none = with(r#","pad_token_id":null,"eos_token_id":null"#);
    let none = T5Config::from_json(none.as_bytes()).unwrap();
    assert_eq!(none.pad_token_id, None);
    assert!(none.eos_token_ids.is_empty());
}

#[test]
fn parameter_counts_of_known_models() {
    let xxl = load("t5-v1_1-xxl").encoder_parameters();
    assert_eq!(
        xxl,
        24 * (4 * 4096 * 4096 + 3 * 4096 * 10240 + 2 * 4096) + 4096
    );
}

#[test]
fn every_wrong_field_is_named() {
    for (extra, place, found) in [
        (r#","d_kv":0"#, "`d_kv`", "found `0`"),
        (r#","num_layers":1.5"#, "`num_layers`", "found `1.5`"),
        (r#","num_heads":-3"#, "`num_heads`", "found `-3`"),
        (r#","d_ff":"large""#, "`d_ff`", "found `\"large\"`"),
        (
            r#","vocab_size":99999999999"#,
            "`vocab_size`",
            "found `99999999999`",
        ),
        (r#","hidden_size":17"#, "`d_model`", "`hidden_size`"),
        (
            r#","layer_norm_epsilon":-1"#,
            "`layer_norm_epsilon`",
            "found `-1`",
        ),
        (
            r#","feed_forward_proj":"glu-relu""#,
            "`feed_forward_proj`",
            "found `glu-relu`",
        ),
        (
            r#","relative_attention_num_buckets":2"#,
            "num_buckets`",
            "found 2",
        ),
        (
            r#","relative_attention_max_distance":16"#,
            "max_distance`",
            "found 16",
        ),
        (
            r#","tie_word_embeddings":1"#,
            "`tie_word_embeddings`",
            "found `1`",
        ),
        (
            r#","eos_token_id":[1,"x"]"#,
            "`eos_token_id`",
            "found `\"x\"`",
        ),
        (
            r#","architectures":"T5""#,
            "`architectures`",
            "found `\"T5\"`",
        ),
    ] {
        let error = error(&with(extra));
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        let text = error.to_string();
        assert!(
            text.contains(place) && text.contains(found),
            "{extra}: {text}"
        );
    }
    let missing = error(r#"{"model_type":"t5","vocab_size":100}"#).to_string();
    assert_eq!(
        missing,
        "field `num_layers`: missing, expected a positive integer"
    );
    assert!(
        error("[]")
            .to_string()
            .contains("found a list, expected a JSON object")
    );
    assert!(error("{").to_string().contains("not valid JSON"));
}

#[test]
fn what_would_change_the_numbers_is_refused() {
    for (json, place) in [
        (
            with(r#","quantization_config":{"bits":4}"#),
            "quantization_config",
        ),
        (with(r#","is_decoder":true"#), "is_decoder"),
        (with(r#","dense_act_fn":"laplace""#), "dense_act_fn"),
        (with("").replace("\"t5\"", "\"longt5\""), "model_type"),
    ] {
        let error = error(&json);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains(place), "{error}");
    }
}

#[test]
fn unknown_fields_are_listed() {
    let config = T5Config::from_json(with(r#","flux_capacitor":1,"n_positions":512"#).as_bytes());
    let unused = config.unwrap().unused_fields;
    let unknown: Vec<_> = unused
        .iter()
        .filter(|f| f.unknown)
        .map(|f| f.name.as_str())
        .collect();
    assert_eq!(unknown, ["flux_capacitor"]);
    assert_eq!(unused.len(), 2);
}
