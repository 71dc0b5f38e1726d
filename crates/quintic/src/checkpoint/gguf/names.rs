//! llama.cpp's names of a T5's tensors, and those of transformers.

/// Outside of blocks.
const WHOLE: [(&str, &str); 4] = [
    ("token_embd", "shared"),
    ("output", "lm_head"),
    ("enc.output_norm", "encoder.final_layer_norm"),
    ("dec.output_norm", "decoder.final_layer_norm"),
];

/// In blocks of both stacks.
const IN_BLOCK: [(&str, &str); 6] = [
    ("attn_norm", "layer.0.layer_norm"),
    ("attn_q", "layer.0.SelfAttention.q"),
    ("attn_k", "layer.0.SelfAttention.k"),
    ("attn_v", "layer.0.SelfAttention.v"),
    ("attn_o", "layer.0.SelfAttention.o"),
    (
        "attn_rel_b",
        "layer.0.SelfAttention.relative_attention_bias",
    ),
];

/// In a decoder's blocks.
const CROSS: [(&str, &str); 6] = [
    ("cross_attn_norm", "layer.1.layer_norm"),
    ("cross_attn_q", "layer.1.EncDecAttention.q"),
    ("cross_attn_k", "layer.1.EncDecAttention.k"),
    ("cross_attn_v", "layer.1.EncDecAttention.v"),
    ("cross_attn_o", "layer.1.EncDecAttention.o"),
    (
        "cross_attn_rel_b",
        "layer.1.EncDecAttention.relative_attention_bias",
    ),
];

/// The name that transformers has for it; names that it has not are left as they are. `contains`
/// says what else is in the file: the second product into a feed-forward layer is `wi` if there is
/// no gate beside it.
pub(in crate::checkpoint) fn transformers_name(
    name: &str,
    contains: impl Fn(&str) -> bool,
) -> String {
    let Some(stem) = name.strip_suffix(".weight") else {
        return name.to_owned();
    };
    let whole = WHOLE.into_iter().find(|&(theirs, _)| theirs == stem);
    let ours = match whole {
        Some((_, ours)) => Some(ours.to_owned()),
        None => in_block(stem, contains),
    };
    ours.map_or_else(|| name.to_owned(), |ours| format!("{ours}.weight"))
}

fn in_block(stem: &str, contains: impl Fn(&str) -> bool) -> Option<String> {
    let (stack, feed_forward, rest) = match stem.strip_prefix("enc.blk.") {
        Some(rest) => ("encoder", 1, rest),
        None => ("decoder", 2, stem.strip_prefix("dec.blk.")?),
    };
    let (layer, part) = rest.split_once('.')?;
    // What `parse` accepts beside digits would name the same layer twice.
    if layer.is_empty() || !layer.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let block = format!("{stack}.block.{layer}");
    let listed = |list: &[(&str, &str)]| {
        let found = list.iter().find(|&&(theirs, _)| theirs == part);
        found.map(|(_, ours)| format!("{block}.{ours}"))
    };
    let shared = listed(&IN_BLOCK);
    if shared.is_some() {
        return shared;
    }
    if stack == "decoder"
        && let Some(cross) = listed(&CROSS)
    {
        return Some(cross);
    }
    let gate = format!(
        "{}.ffn_gate.weight",
        stem.strip_suffix(part)?.trim_end_matches('.')
    );
    let dense = match part {
        "ffn_norm" => return Some(format!("{block}.layer.{feed_forward}.layer_norm")),
        "ffn_gate" => "wi_0",
        "ffn_up" if contains(&gate) => "wi_1",
        "ffn_up" => "wi",
        "ffn_down" => "wo",
        _ => return None,
    };
    Some(format!(
        "{block}.layer.{feed_forward}.DenseReluDense.{dense}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_the_architecture_has_one_of_transformers() {
        let gated = |name: &str| name == "enc.blk.0.ffn_gate.weight";
        for (theirs, ours) in [
            ("token_embd", "shared"),
            ("output", "lm_head"),
            ("enc.output_norm", "encoder.final_layer_norm"),
            ("dec.output_norm", "decoder.final_layer_norm"),
            ("enc.blk.0.attn_norm", "encoder.block.0.layer.0.layer_norm"),
            (
                "enc.blk.11.attn_q",
                "encoder.block.11.layer.0.SelfAttention.q",
            ),
            (
                "enc.blk.0.attn_k",
                "encoder.block.0.layer.0.SelfAttention.k",
            ),
            (
                "enc.blk.0.attn_v",
                "encoder.block.0.layer.0.SelfAttention.v",
            ),
            (
                "enc.blk.0.attn_o",
                "encoder.block.0.layer.0.SelfAttention.o",
            ),
            (
                "enc.blk.0.attn_rel_b",
                "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
            ),
            ("enc.blk.0.ffn_norm", "encoder.block.0.layer.1.layer_norm"),
            (
                "enc.blk.0.ffn_gate",
                "encoder.block.0.layer.1.DenseReluDense.wi_0",
            ),
            (
                "enc.blk.0.ffn_up",
                "encoder.block.0.layer.1.DenseReluDense.wi_1",
            ),
            (
                "enc.blk.1.ffn_up",
                "encoder.block.1.layer.1.DenseReluDense.wi",
            ),
            (
                "enc.blk.0.ffn_down",
                "encoder.block.0.layer.1.DenseReluDense.wo",
            ),
            (
                "dec.blk.0.attn_q",
                "decoder.block.0.layer.0.SelfAttention.q",
            ),
            (
                "dec.blk.0.cross_attn_norm",
                "decoder.block.0.layer.1.layer_norm",
            ),
            (
                "dec.blk.0.cross_attn_q",
                "decoder.block.0.layer.1.EncDecAttention.q",
            ),
            (
                "dec.blk.0.cross_attn_o",
                "decoder.block.0.layer.1.EncDecAttention.o",
            ),
            (
                "dec.blk.0.cross_attn_rel_b",
                "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias",
            ),
            ("dec.blk.3.ffn_norm", "decoder.block.3.layer.2.layer_norm"),
            (
                "dec.blk.0.ffn_up",
                "decoder.block.0.layer.2.DenseReluDense.wi",
            ),
            (
                "dec.blk.0.ffn_down",
                "decoder.block.0.layer.2.DenseReluDense.wo",
            ),
        ] {
            let name = transformers_name(&format!("{theirs}.weight"), gated);
            assert_eq!(name, format!("{ours}.weight"));
        }
        for unknown in [
            "enc.blk.0.cross_attn_q.weight",
            "enc.blk.0.attn_q.bias",
            "enc.blk.+1.attn_q.weight",
            "blk.0.attn_q.weight",
            "enc.blk.0.attn_x.weight",
        ] {
            assert_eq!(transformers_name(unknown, gated), unknown);
        }
    }
}
