//! The names in the UMT5 encoder that Wan's own repository publishes
//! (`models_t5_umt5-xxl-enc-bf16.pth`), which are not those of transformers.

/// Tensors that tell such a file from any other. Wan's video models have `blocks.0` too,
/// but no embedding of tokens.
const MARKERS: [&str; 3] = [
    "token_embedding.weight",
    "blocks.0.attn.q.weight",
    "blocks.0.ffn.gate.0.weight",
];

/// What a block's tensors are called there, and in transformers.
const IN_BLOCK: [(&str, &str); 10] = [
    ("norm1", "layer.0.layer_norm"),
    ("attn.q", "layer.0.SelfAttention.q"),
    ("attn.k", "layer.0.SelfAttention.k"),
    ("attn.v", "layer.0.SelfAttention.v"),
    ("attn.o", "layer.0.SelfAttention.o"),
    (
        "pos_embedding.embedding",
        "layer.0.SelfAttention.relative_attention_bias",
    ),
    ("norm2", "layer.1.layer_norm"),
    ("ffn.gate.0", "layer.1.DenseReluDense.wi_0"),
    ("ffn.fc1", "layer.1.DenseReluDense.wi_1"),
    ("ffn.fc2", "layer.1.DenseReluDense.wo"),
];

/// Whether a file with these names is such an encoder.
pub(super) fn is_wan(contains: impl Fn(&str) -> bool) -> bool {
    MARKERS.into_iter().all(contains)
}

/// The name that transformers has for it; names that it has not are left as they are.
pub(super) fn transformers_name(name: &str) -> String {
    match name {
        "token_embedding.weight" => return "shared.weight".to_owned(),
        "norm.weight" => return "encoder.final_layer_norm.weight".to_owned(),
        _ => {}
    }
    in_block(name).unwrap_or_else(|| name.to_owned())
}

fn in_block(name: &str) -> Option<String> {
    let (layer, rest) = name.strip_prefix("blocks.")?.split_once('.')?;
    let part = rest.strip_suffix(".weight")?;
    let (_, renamed) = IN_BLOCK.into_iter().find(|&(theirs, _)| theirs == part)?;
    Some(format!("encoder.block.{layer}.{renamed}.weight"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renames_what_it_knows() {
        for (theirs, ours) in [
            ("token_embedding.weight", "shared.weight"),
            (
                "blocks.23.ffn.gate.0.weight",
                "encoder.block.23.layer.1.DenseReluDense.wi_0.weight",
            ),
            ("blocks.0.attn.x.weight", "blocks.0.attn.x.weight"),
            ("blocks.0", "blocks.0"),
        ] {
            assert_eq!(transformers_name(theirs), ours);
        }
    }
}
