//! A calibration's figures are those of a model that is loaded by its plan.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use quintic::calibrate::{Errors, Options, Plan, calibrate, fingerprint};
use quintic::checkpoint::{Checkpoint, OpenOptions};
use quintic::verify::{self, Reference};
use quintic::{
    BackendKind, Compute, ComputeChoice, ComputeType, ErrorKind, Keep, ProductKind, Site, Stack,
    WeightType,
};

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../testdata/decoder_goldens")
        .join(name)
}

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(folder(name), &OpenOptions::default()).unwrap()
}

fn rows() -> Vec<Vec<u32>> {
    vec![
        vec![3, 11, 4, 1, 5, 9, 2, 6, 5, 3, 5, 1],
        vec![8, 1],
        vec![],
        (2..34).chain([1]).collect(),
    ]
}

/// Rows that a decoder can attend to.
fn full_rows() -> Vec<Vec<u32>> {
    rows().into_iter().filter(|row| !row.is_empty()).collect()
}

fn options(weights: WeightType) -> Options<'static> {
    Options {
        dtype: ComputeType::Bf16,
        weights,
        at_most: None,
        batch_tokens: 4096,
        new_tokens: 5,
        threads: None,
        progress: None,
    }
}

fn measured(plan: &Plan, compute: &Compute, checkpoint: &Checkpoint) -> Errors {
    let with_logits = plan.integers.as_ref().unwrap().without.logits.is_some();
    let options = verify::Options {
        batch_tokens: 4096,
        new_tokens: if with_logits { 5 } else { 0 },
        progress: None,
    };
    let reference = Reference::compute(checkpoint, full_rows(), &options).unwrap();
    let report = reference
        .compare(checkpoint, BackendKind::Cpu, compute, &options)
        .unwrap();
    Errors {
        states: report.states.relative_rms,
        logits: report.logits.map(|logits| logits.distance.relative_rms),
    }
}

/// Between what is lost without integers and with all in integers, so that a part is chosen.
fn between(checkpoint: &Checkpoint, weights: WeightType) -> f64 {
    let plan = calibrate(checkpoint, "m", full_rows(), &options(weights)).unwrap();
    let integers = plan.integers.unwrap();
    let least = f64::max(integers.without.states, integers.without.logits.unwrap());
    let most = f64::max(integers.all.states, integers.all.logits.unwrap());
    assert!(least < most, "{integers:?}");
    least.midpoint(most)
}

#[test]
fn figures_are_those_of_the_model_that_a_plan_makes() {
    for (name, weights) in [
        ("t5-v1_1", WeightType::Int8),
        ("t5-v1_1", WeightType::W8A8),
        ("umt5", WeightType::Int4),
    ] {
        let checkpoint = open(name);
        let at_most = Some(between(&checkpoint, weights));
        let options = Options {
            at_most,
            ..options(weights)
        };
        let plan = calibrate(&checkpoint, "m", full_rows(), &options).unwrap();
        let integers = plan.integers.as_ref().unwrap();
        let share = integers.share();
        assert!(0.0 < share && share < 1.0, "{name}: {share}");
        assert!(integers.plan.within(&integers.at_most), "{integers:?}");
        assert!(!integers.all.within(&integers.at_most), "{integers:?}");
        for product in &integers.products {
            assert_ne!(plan.keep.contains(product.site), product.in_integers);
        }

        // What is loaded by the plan computes what was measured: the same bits.
        let chosen = plan.complete(&ComputeChoice::default()).unwrap();
        let compute = chosen.resolve(None).unwrap();
        assert_eq!((compute.weights, compute.keep), (weights, plan.keep));
        assert_eq!(measured(&plan, &compute, &checkpoint), integers.plan);
        let plain = Compute {
            weights: WeightType::AsStored,
            keep: Keep::default(),
            ..compute
        };
        assert_eq!(measured(&plan, &plain, &checkpoint), integers.without);
        assert_eq!(integers.bf16, integers.without);
        let all = Compute {
            keep: Keep::default(),
            ..compute
        };
        assert_eq!(measured(&plan, &all, &checkpoint), integers.all);
        for (kind, errors) in &integers.kinds {
            let others = ProductKind::ALL.into_iter().filter(|other| other != kind);
            let alone = Compute {
                keep: Keep::of(&others.collect::<Vec<_>>()),
                ..compute
            };
            assert_eq!(measured(&plan, &alone, &checkpoint), *errors, "{kind:?}");
        }
        let product = &integers.products[1];
        let others = integers.products.iter().map(|product| product.site);
        let others = others.filter(|&site| site != product.site);
        let alone = Compute {
            keep: Keep::of_sites(others).unwrap(),
            ..compute
        };
        assert_eq!(measured(&plan, &alone, &checkpoint), product.errors);
    }
}

#[test]
fn what_was_not_measured_is_left_alone() {
    let checkpoint = open("t5-v1_1");
    let options = Options {
        at_most: Some(0.5),
        new_tokens: 0,
        ..options(WeightType::Int8)
    };
    // Rows without tokens are no trouble for an encoder.
    let plan = calibrate(&checkpoint, "m", rows(), &options).unwrap();
    let integers = plan.integers.as_ref().unwrap();
    assert_eq!((integers.share(), integers.plan.logits), (1.0, None));
    let site = |stack, layer, kind| Site { stack, layer, kind };
    assert!(plan.keep.contains(Site::HEAD));
    assert!(
        plan.keep
            .contains(site(Stack::Decoder, 0, ProductKind::Qkv))
    );
    assert!(
        !plan
            .keep
            .contains(site(Stack::Encoder, 0, ProductKind::Qkv))
    );
}

#[test]
fn peaks_need_no_integers() {
    let checkpoint = open("t5-v1_1");
    let options = Options {
        dtype: ComputeType::F16,
        ..options(WeightType::AsStored)
    };
    let plan = calibrate(&checkpoint, "m", full_rows(), &options).unwrap();
    assert_eq!((plan.keep, &plan.integers), (Keep::default(), &None));
    // Every feed-forward layer of both stacks, none of which is loud.
    let config = quintic::config_of(&checkpoint).unwrap();
    let n_layers = config.num_layers + config.num_decoder_layers;
    assert_eq!(plan.feed_forward.len(), n_layers);
    assert!(plan.scales().is_empty());
    for layer in &plan.feed_forward {
        assert_eq!(layer.site.kind, ProductKind::Wi);
        assert!(
            layer.peaks.product > 0.01 && layer.peaks.gated > 0.01,
            "{layer:?}"
        );
    }
}

#[test]
fn what_cannot_be_measured_or_used_is_an_error() {
    let checkpoint = open("t5-v1_1");
    let int8 = options(WeightType::Int8);
    let refused = |rows: Vec<Vec<u32>>, options: &Options<'_>| {
        calibrate(&checkpoint, "m", rows, options).unwrap_err()
    };
    let error = refused(vec![vec![], vec![]], &int8);
    assert_eq!(error.kind(), ErrorKind::Input);
    for (bound, message) in [
        (
            1e-9,
            "the largest error asked for is 1.000e-9, but that of the hidden states is",
        ),
        (0.0, "the largest error is 0, expected a positive number"),
        (f64::NAN, "the largest error is NaN"),
    ] {
        let error = refused(
            full_rows(),
            &Options {
                at_most: Some(bound),
                ..int8
            },
        );
        assert_eq!(error.kind(), ErrorKind::Input);
        assert!(error.message().starts_with(message), "{error}");
    }

    let plan = calibrate(&checkpoint, "first", full_rows(), &int8).unwrap();
    plan.check(&checkpoint).unwrap();
    assert_eq!(plan.fingerprint, fingerprint(&checkpoint).unwrap());
    let error = plan.check(&open("umt5")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Input);
    let message = error.message();
    assert!(message.contains("it was measured on `first`"), "{error}");
    assert!(message.contains("but the model is `"), "{error}");

    let complete = |choice: ComputeChoice| plan.complete(&choice).unwrap_err();
    for (choice, name) in [
        (
            ComputeChoice {
                dtype: Some(ComputeType::F32),
                ..ComputeChoice::default()
            },
            "`dtype` is `f32`, but the plan was measured for `bf16`",
        ),
        (
            ComputeChoice {
                weights: Some(WeightType::Int4),
                ..ComputeChoice::default()
            },
            "`weights` is `int4`",
        ),
        (
            ComputeChoice {
                fold_norm_gains: Some(true),
                ..ComputeChoice::default()
            },
            "`fold_norm_gains` is `true`",
        ),
    ] {
        let error = complete(choice);
        assert_eq!(error.kind(), ErrorKind::Input);
        assert!(error.message().starts_with(name), "{error}");
    }
    let same = ComputeChoice {
        dtype: Some(ComputeType::Bf16),
        weights: Some(WeightType::Int8),
        keep: Some(plan.keep),
        ..ComputeChoice::default()
    };
    assert_eq!(plan.complete(&same).unwrap().keep, Some(plan.keep));
}
