use super::*;
use crate::backend::{Keys, Visible};
use crate::batch::Mask;
use crate::config::Activation;

fn stacked(shape: [usize; 2], values: &[f32]) -> Weights {
    Weights::Stacked(vec![Tensor::from_f32("w", shape.to_vec(), values)])
}

fn rows(columns: usize, data: &[f32]) -> Rows {
    Rows::new(data.len() / columns, columns, data.to_vec())
}

#[test]
fn embed_copies_rows_of_the_table() {
    let table = Tensor::from_f32("t", vec![3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(
        Reference.embed(&table, &[2, 0, 2]).data,
        [5.0, 6.0, 1.0, 2.0, 5.0, 6.0]
    );
    assert_eq!(Reference.embed(&table, &[]).rows, 0);
}

#[test]
fn rms_norm_divides_by_the_root_mean_square() {
    let x = rows(2, &[3.0, 4.0, 0.0, 0.0]);
    let mut out = Rows::zeros(2, 2);
    // mean square of (3, 4) = 12.5
    Reference.rms_norm(&x, Some(&vec![1.0, 2.0]), 0.0, &mut rows(2, &[0.0; 4]));
    Reference.rms_norm(&x, Some(&vec![1.0, 2.0]), 1e-6, &mut out);
    let scale = 1.0 / (12.5f64 + 1e-6).sqrt();
    assert_eq!(
        out.data,
        [(3.0 * scale) as f32, (8.0 * scale) as f32, 0.0, 0.0]
    );
}

#[test]
fn linear_stores_adds_activates_and_gates() {
    let x = rows(2, &[1.0, 2.0, 3.0, 4.0]);
    let w = stacked([2, 2], &[1.0, 0.0, -1.0, 1.0]);
    let mut out = Rows::zeros(2, 2);
    Reference.linear(&x, &w, Epilogue::Store(&mut out));
    assert_eq!(out.data, [1.0, 1.0, 3.0, 1.0]);
    Reference.linear(&x, &w, Epilogue::Add(&mut out));
    assert_eq!(out.data, [2.0, 2.0, 6.0, 2.0]);
    let negative = stacked([2, 2], &[-1.0, 0.0, 1.0, 0.0]);
    Reference.linear(
        &x,
        &negative,
        Epilogue::Activate(Activation::Relu, &mut out),
    );
    assert_eq!(out.data, [0.0, 1.0, 0.0, 3.0]);
    let gated = Weights::Gated {
        gate: Tensor::from_f32("g", vec![1, 2], &[1.0, -1.0]),
        up: Tensor::from_f32("u", vec![1, 2], &[1.0, 1.0]),
    };
    let mut out = Rows::zeros(2, 1);
    Reference.linear(&x, &gated, Epilogue::Gate(Activation::Linear, &mut out));
    assert_eq!(out.data, [-3.0, -7.0]);
}

#[test]
#[should_panic(expected = "gated weights go with a gating epilogue")]
fn gated_weights_cannot_be_stored_plainly() {
    let gated = Weights::Gated {
        gate: Tensor::from_f32("g", vec![1, 1], &[1.0]),
        up: Tensor::from_f32("u", vec![1, 1], &[1.0]),
    };
    Reference.linear(
        &rows(1, &[1.0]),
        &gated,
        Epilogue::Store(&mut Rows::zeros(1, 1)),
    );
}

/// Against three loops, over sizes around the block of 64 columns and odd depths.
#[test]
fn products_equal_three_loops_bit_for_bit_after_rounding() {
    let value = |i: usize| ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0;
    for tokens in [0, 1, 2, 7, 33] {
        for d_in in [1, 3, 16, 65] {
            for d_out in [1, 63, 64, 65, 130] {
                let x = Rows::new(tokens, d_in, (0..tokens * d_in).map(value).collect());
                let w: Vec<f32> = (0..d_out * d_in).map(|i| value(i + 17)).collect();
                let mut out = Rows::zeros(tokens, d_out);
                Reference.linear(&x, &stacked([d_out, d_in], &w), Epilogue::Store(&mut out));
                for token in 0..tokens {
                    for column in 0..d_out {
                        let sum: f64 = (0..d_in)
                            .map(|k| f64::from(x.row(token)[k]) * f64::from(w[column * d_in + k]))
                            .sum();
                        let found = out.row(token)[column];
                        // One ulp of f32: the f64 sums may differ in their last bits.
                        assert!((f64::from(found) - sum).abs() <= 6e-8 * sum.abs().max(1e-6));
                    }
                }
            }
        }
    }
}

/// One head of width 1: `out = softmax(q * k + bias) v` by hand.
#[test]
fn attention_by_hand() {
    // Two rows of one and two tokens; columns q, k, v.
    let qkv = rows(3, &[1.0, 1.0, 5.0, 1.0, 0.0, 2.0, 0.0, 1.0, 4.0]);
    let table = Tensor::from_f32("b", vec![4, 1], &[0.0, 0.5, 0.25, -0.5]);
    let bias = Reference
        .prepare_bias(table, Buckets::bidirectional(4, 8))
        .unwrap();
    let mut out = Rows::zeros(3, 1);
    let mut attend = |visible: Visible<'_>| {
        let attention = Attention {
            n_heads: 1,
            d_kv: 1,
            queries: &qkv,
            row_starts: &[0, 1, 3],
            keys: Keys::Fused,
            bias: Some(&bias),
            positions: None,
            visible,
            head_gains: None,
        };
        Reference.attend(&attention, &mut out);
        out.data.clone()
    };
    let mix = |a: f64, b: f64| ((a.exp() * 2.0 + b.exp() * 4.0) / (a.exp() + b.exp())) as f32;
    // Buckets: 0 for the same token, 1 for any earlier, 3 for any later one.
    let expected = [5.0, mix(0.0, 1.0 - 0.5), mix(0.5, 0.0)];
    assert_eq!(attend(Visible::Mask(&Mask::Full)), expected);
    let keys = Mask::Keys(vec![true, false, true]);
    assert_eq!(attend(Visible::Mask(&keys)), [5.0, 4.0, 4.0]);
    // Token 1 of the second row sees itself only, token 0 nothing: all keys alike.
    let pairs = Mask::Pairs(vec![true, false, false, false, true]);
    assert_eq!(attend(Visible::Mask(&pairs)), [5.0, 3.0, 4.0]);
    assert_eq!(attend(Visible::Causal), [5.0, 2.0, mix(0.5, 0.0)]);
}

/// The weights of the same attention, and what gains make of both.
#[test]
fn weights_and_gains_by_hand() {
    // Two heads of width 1; a row of one token and one of two; columns q, k, v of each head.
    #[rustfmt::skip]
    let qkv = rows(6, &[
        1.0, 1.0,  1.0, 1.0,  5.0, 5.0,
        1.0, 0.0,  0.0, 2.0,  2.0, 2.0,
        0.0, 1.0,  1.0, 3.0,  4.0, 4.0,
    ]);
    let gains = [0.5, -2.0];
    let mut out = Rows::zeros(3, 2);
    let mut ask = |visible: Visible<'_>| {
        let attention = Attention {
            n_heads: 2,
            d_kv: 1,
            queries: &qkv,
            row_starts: &[0, 1, 3],
            keys: Keys::Fused,
            bias: None,
            positions: None,
            visible,
            head_gains: Some(&gains),
        };
        Reference.attend(&attention, &mut out);
        (
            Reference.attention_weights(&attention).unwrap(),
            out.data.clone(),
        )
    };
    let e = 1f64.exp();
    let (near, far) = (1.0 / (1.0 + e), e / (1.0 + e));
    let weight = |gain: f64, weight: f64| (gain * weight) as f32;
    let (weights, out) = ask(Visible::Mask(&Mask::Full));
    #[rustfmt::skip]
    let expected = [
        0.5, -2.0,
        weight(0.5, near), weight(0.5, far), 0.25, 0.25,
        -1.0, -1.0, weight(-2.0, near), weight(-2.0, far),
    ];
    assert_eq!(weights, expected);
    let mix = |gain: f64, a: f64, b: f64| ((a * 2.0 + b * 4.0) * gain) as f32;
    let expected = [
        [2.5, -10.0],
        [mix(0.5, near, far), -6.0],
        [1.5, mix(-2.0, near, far)],
    ];
    for (found, expected) in out.iter().zip(expected.as_flattened()) {
        // Sums in another order may be rounded to a neighbour.
        assert!((found - expected).abs() <= 6e-8 * expected.abs(), "{out:?}");
    }
    // Of the second row, query 0 sees nothing and query 1 only itself.
    let pairs = Mask::Pairs(vec![true, false, false, false, true]);
    let (weights, _) = ask(Visible::Mask(&pairs));
    let expected = [0.5, -2.0, 0.25, 0.25, 0.0, 0.5, -1.0, -1.0, 0.0, -2.0];
    assert_eq!(weights, expected);
}

#[test]
fn positions_replace_the_count() {
    let qkv = rows(3, &[0.0, 0.0, 2.0, 0.0, 0.0, 4.0]);
    let table = Tensor::from_f32("b", vec![4, 1], &[0.0, 0.5, 0.0, -0.5]);
    // Distance 1 and 5 fall into different buckets of each direction here.
    let buckets = Buckets::bidirectional(8, 8);
    let table8: Vec<f32> = (0..8).map(|b| b as f32 / 8.0).collect();
    let table = Tensor::from_f32("b", vec![8, 1], &[table8, table.to_f32()].concat()[..8]);
    let bias = Reference.prepare_bias(table, buckets.clone()).unwrap();
    let mut out = Rows::zeros(2, 1);
    for positions in [[0u32, 1], [0, 5]] {
        let attention = Attention {
            n_heads: 1,
            d_kv: 1,
            queries: &qkv,
            row_starts: &[0, 2],
            keys: Keys::Fused,
            bias: Some(&bias),
            positions: Some(&positions),
            visible: Visible::Mask(&Mask::Full),
            head_gains: None,
        };
        Reference.attend(&attention, &mut out);
        let ahead = (buckets.of(i64::from(positions[1])) as f64 / 8.0).exp();
        assert_eq!(out.data[0], ((2.0 + ahead * 4.0) / (1.0 + ahead)) as f32);
    }
}

/// A sequence fed token by token through the cache equals the causal pass over all of it.
#[test]
fn a_cache_grown_step_by_step_equals_the_causal_pass() {
    let (n_heads, d_kv, tokens) = (2, 3, 5);
    let inner = n_heads * d_kv;
    let values = (0..tokens * 3 * inner)
        .map(|i| ((i * 37) % 23) as f32 / 11.0 - 1.0)
        .collect();
    let qkv = Rows::new(tokens, 3 * inner, values);
    let table = Tensor::from_f32("b", vec![4, 2], &[0.1, -0.2, 0.3, 0.4, -0.5, 0.6, 0.7, 0.8]);
    let bias = Reference
        .prepare_bias(table, Buckets::unidirectional(4, 4))
        .unwrap();
    let attention = Attention {
        n_heads,
        d_kv,
        queries: &qkv,
        row_starts: &[0, tokens],
        keys: Keys::Fused,
        bias: Some(&bias),
        positions: None,
        visible: Visible::Causal,
        head_gains: None,
    };
    let mut expected = Rows::zeros(tokens, inner);
    Reference.attend(&attention, &mut expected);

    let mut cache = Reference.kv_cache(1, n_heads, d_kv);
    assert!(cache.is_empty());
    for token in 0..tokens {
        let step = rows(3 * inner, qkv.row(token));
        Reference.append_kv(&mut cache, &step, inner, &[0, 1]);
        assert_eq!(cache.len(0), token + 1);
        let attention = Attention {
            queries: &step,
            row_starts: &[0, 1],
            keys: Keys::Cache(&cache),
            ..attention
        };
        let mut out = Rows::zeros(1, inner);
        Reference.attend(&attention, &mut out);
        assert_eq!(out.data, expected.row(token));
    }
}

#[test]
fn logits_are_scaled() {
    let x = rows(2, &[1.0, 2.0]);
    let logits = Reference.logits(&x, &stacked([3, 2], &[1.0, 0.0, 0.0, 1.0, 1.0, 1.0]), 0.5);
    assert_eq!(Reference.read_logits(&logits).unwrap(), [0.5, 1.0, 1.5]);
}

#[test]
fn choosing() {
    let head = stacked([4, 1], &[0.0, 2.0, 2.0, 1.0]);
    let top = Reference.top(&rows(1, &[0.5]), &head, 2.0, 3).unwrap();
    assert_eq!(top[0].iter().map(|c| c.id).collect::<Vec<_>>(), [1, 2, 3]);
    let total = (1.0 + 2.0 * 2f64.exp() + 1f64.exp()).ln();
    assert_eq!(top[0][0].log_prob, (2.0 - total) as f32);
    let all = Reference.top(&rows(1, &[0.5]), &head, 2.0, 9).unwrap();
    assert_eq!(all[0].len(), 4);
}

#[test]
fn pooling() {
    let x = rows(2, &[1.0, 2.0, 3.0, 4.0, 8.0, 9.0]);
    let starts = [0, 2, 2, 3];
    assert_eq!(
        Reference.pool(&x, &starts, Pool::Mean).unwrap(),
        [2.0, 3.0, 0.0, 0.0, 8.0, 9.0]
    );
    assert_eq!(
        Reference.pool(&x, &starts, Pool::First).unwrap(),
        [1.0, 2.0, 0.0, 0.0, 8.0, 9.0]
    );
    assert_eq!(
        Reference.pool(&x, &starts, Pool::Last).unwrap(),
        [3.0, 4.0, 0.0, 0.0, 8.0, 9.0]
    );
}
