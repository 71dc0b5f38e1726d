//! Powers of two are exact: a feed-forward layer has the same bits with any exponents with which
//! nothing becomes subnormal or infinite.

use super::tests::{backend, emulated, noise, operand, tensor, values};
use super::*;
use crate::backend::reference::{Reference, Rows};
use crate::keep::Stack;

/// The smallest normal number of f16.
const SMALLEST: f32 = 1.0 / 16_384.0;

const SITE: Site = Site {
    stack: Stack::Encoder,
    layer: 3,
    kind: ProductKind::Wi,
};

/// A product of a layer, by itself and behind an activation or a gate, then the layer's second
/// product onto a stream, with these exponents.
struct Ran {
    inside: Vec<f32>,
    out: Vec<f32>,
}

fn run(weights: Weights, wo: &Tensor, x: &Rows, act: Activation, scale: Scale) -> Ran {
    let device = emulated();
    let cuda = backend(&device, ComputeType::F16);
    let wi = cuda.prepare_product(SITE, weights, None).unwrap();
    let wo_weights = Weights::Stacked(vec![wo.clone()]);
    let wo_site = Site {
        kind: ProductKind::Wo,
        ..SITE
    };
    let wo = cuda.prepare_product(wo_site, wo_weights, None).unwrap();
    // Of the others nothing is the layer's.
    let other = Scale { inner: 9, outer: 9 };
    cuda.start_scales(&[
        (Site { layer: 2, ..SITE }, other),
        (SITE, scale),
        (wo_site, other),
    ]);
    let own = operand(&cuda, x);
    let columns = wi.columns / (1 + usize::from(wi.gated));
    let mut inside = cuda.operand(x.rows, columns);
    match wi.gated {
        true => cuda.linear(&own, &wi, Epilogue::Gate(act, &mut inside)),
        false => cuda.linear(&own, &wi, Epilogue::Activate(act, &mut inside)),
    }
    assert_eq!(inside.scale, scale.outer_factor(), "the exponent is in use");
    let mut out = cuda.stream(x.rows, wo.columns, &vec![0.5; x.rows * wo.columns]);
    cuda.linear(&inside, &wo, Epilogue::Add(&mut out));
    Ran {
        inside: values(&cuda, &inside),
        out: cuda.read_stream(&out).unwrap(),
    }
}

/// The first product without an epilogue, from exact sums.
fn product(part: &Tensor, x: &Rows) -> Vec<f32> {
    let weights = Reference
        .prepare_matrix(Weights::Stacked(vec![part.clone()]), None)
        .unwrap();
    let mut out = Rows::zeros(x.rows, part.shape()[0]);
    Reference.linear(x, &weights, Epilogue::Store(&mut out));
    out.data
}

#[test]
fn what_stays_normal_has_the_same_bits() {
    let (tokens, depth, columns) = (5, 64, 48);
    let dtype = ComputeType::F16;
    let x = Rows::new(tokens, depth, noise(dtype, tokens * depth, 3));
    let half = |seed| tensor(columns, depth, &noise(dtype, columns * depth, seed));
    let (gate, up) = (half(1), half(2));
    let wo = tensor(24, columns, &noise(dtype, 24 * columns, 4));
    for gated in [false, true] {
        for act in [
            Activation::GeluTanh,
            Activation::Relu,
            Activation::Silu,
            Activation::Linear,
        ] {
            let weights = || match gated {
                true => Weights::Gated {
                    gate: gate.clone(),
                    up: up.clone(),
                },
                false => Weights::Stacked(vec![gate.clone()]),
            };
            let plain = run(weights(), &wo, &x, act, Scale::default());
            let products: Vec<Vec<f32>> = match gated {
                true => vec![product(&gate, &x), product(&up, &x)],
                false => vec![product(&gate, &x)],
            };
            for (inner, outer) in [(1, 0), (0, 1), (3, 5), (0, 7), (6, 2)] {
                let scale = Scale { inner, outer };
                let scaled = run(weights(), &wo, &x, act, scale);
                // A subnormal number has fewer bits. With a factor of 2, since the backend's sums
                // are not exact.
                let keeps = |value: f32, factor: f32| {
                    value == 0.0 || value.abs() * factor >= 2.0 * SMALLEST
                };
                let mut n_equal = 0;
                for (at, (found, expected)) in scaled.inside.iter().zip(&plain.inside).enumerate() {
                    let products = products.iter().all(|p| keeps(p[at], scale.inner_factor()));
                    if products && keeps(*expected, scale.outer_factor()) {
                        let name = format!("{act:?}, gated {gated}, {scale:?}, value {at}");
                        assert_eq!(found.to_bits(), expected.to_bits(), "{name}");
                        n_equal += 1;
                    }
                }
                // Half of the values of an activation are nearly zero.
                assert!(n_equal * 3 >= plain.inside.len(), "{act:?}: {n_equal}");
            }
        }
    }
}

/// With weights of which everything stays normal, whole layers have the same bits.
#[test]
fn layers_without_small_numbers_have_the_same_bits() {
    let (tokens, depth, columns) = (4, 32, 16);
    // Whole numbers: products are whole and below 2^11, so that nothing is rounded before the gate.
    let whole = |n: usize, seed: usize| -> Vec<f32> {
        (0..n)
            .map(|at| ((at * 7919 + seed * 104_729) % 7) as f32 + 1.0)
            .collect()
    };
    let x = Rows::new(tokens, depth, whole(tokens * depth, 1));
    let weights = || Weights::Gated {
        gate: tensor(columns, depth, &whole(columns * depth, 2)),
        up: tensor(columns, depth, &whole(columns * depth, 3)),
    };
    let wo = tensor(8, columns, &whole(8 * columns, 4));
    // Gate times up is at most (32 * 49)^2, beyond f16 unless it is scaled, and at least 32^2.
    let base = Scale { inner: 0, outer: 8 };
    let expected = run(weights(), &wo, &x, Activation::GeluTanh, base);
    assert!(expected.inside.iter().all(|v| v.is_finite()));
    assert!(expected.inside.iter().any(|v| *v > 65_504.0));
    for (inner, outer) in [(0, 9), (1, 10), (7, 12), (12, 20)] {
        let found = run(
            weights(),
            &wo,
            &x,
            Activation::GeluTanh,
            Scale { inner, outer },
        );
        assert_eq!(found.inside, expected.inside, "{inner} {outer}");
        assert_eq!(found.out, expected.out, "{inner} {outer}");
    }
}
