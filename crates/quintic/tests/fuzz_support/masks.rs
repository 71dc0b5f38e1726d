//! Padded batches of any shape and mask, packed both ways and encoded by a tiny model.

use std::sync::OnceLock;

use arbitrary::{Arbitrary, Result, Unstructured};
use quintic::backend::reference::Reference;
use quintic::backend::{Backend, Pool};
use quintic::batch::{PackedBatch, PadRows, PaddedBatch, PaddedMask};
use quintic::config::T5Config;
use quintic::model::{Encoder, TakeTensor};
use quintic::{Pass, Tensor};

const VOCAB: usize = 7;
const D_MODEL: usize = 4;

/// A batch in the making; its lengths need not fit.
struct Draft {
    ids: Vec<i64>,
    rows: usize,
    len: usize,
    mask: PaddedMask,
    vocab_size: usize,
}

impl<'a> Arbitrary<'a> for Draft {
    fn arbitrary(input: &mut Unstructured<'a>) -> Result<Self> {
        let rows = input.int_in_range(0..=4)?;
        let len = input.int_in_range(0..=9)?;
        let vocab_size = input.int_in_range(0..=VOCAB)?;
        // One in sixteen lists has a length of its own.
        let mut n = |expected: usize| -> Result<usize> {
            match input.ratio(1, 16)? {
                true => input.int_in_range(0..=20),
                false => Ok(expected),
            }
        };
        let (n_ids, n_flags, n_pairs) = (n(rows * len)?, n(rows * len)?, n(rows * len * len)?);
        let id = |input: &mut Unstructured<'a>| -> Result<i64> {
            Ok(match input.int_in_range(0..=63)? {
                0 => input.arbitrary()?,
                other => other % VOCAB as i64,
            })
        };
        let mut ids = Vec::new();
        for _ in 0..n_ids {
            ids.push(id(input)?);
        }
        let mask = match input.int_in_range(0..=3)? {
            0 => PaddedMask::None,
            1 => PaddedMask::Keys(flags(input, n_flags)?),
            2 => PaddedMask::Pairs(flags(input, n_pairs)?),
            _ => {
                let mut documents = Vec::new();
                for _ in 0..n_flags {
                    documents.push(match input.int_in_range(0..=31)? {
                        0 => input.arbitrary()?,
                        other => other % 4 - 1,
                    });
                }
                PaddedMask::Documents(documents)
            }
        };
        Ok(Draft {
            ids,
            rows,
            len,
            mask,
            vocab_size,
        })
    }
}

fn flags(input: &mut Unstructured<'_>, n: usize) -> Result<Vec<bool>> {
    let bytes = input.bytes(n.div_ceil(8).min(input.len()))?;
    Ok((0..n)
        .map(|idx| {
            bytes
                .get(idx / 8)
                .is_some_and(|byte| byte >> (idx % 8) & 1 == 1)
        })
        .collect())
}

/// Packs a batch both ways and checks both against what the docs say, slot by slot.
pub fn masks(input: &[u8]) {
    let Ok(draft) = Draft::arbitrary(&mut Unstructured::new(input)) else {
        return;
    };
    let (rows, len, vocab_size) = (draft.rows, draft.len, draft.vocab_size);
    let fits = rows * len > 0
        && draft.ids.len() == rows * len
        && match &draft.mask {
            PaddedMask::None => true,
            PaddedMask::Keys(keys) => keys.len() == rows * len,
            PaddedMask::Pairs(pairs) => pairs.len() == rows * len * len,
            PaddedMask::Documents(documents) => documents.len() == rows * len,
        };
    let batch = PaddedBatch::new(draft.ids, rows, len, draft.mask);
    assert_eq!(batch.is_ok(), fits, "{batch:?}");
    let Ok(batch) = batch else { return };
    let [zero, compute] =
        [PadRows::Zero, PadRows::Compute].map(|pad_rows| pack(&batch, pad_rows, vocab_size));
    let shared = batch.pack_sharing(
        PadRows::Compute,
        vocab_size,
        Some(encoder().config().bias_reach()),
    );
    assert_eq!(shared.is_ok(), compute.is_some(), "{batch:?}");
    if let (Ok((packed, layout)), Some(compute)) = (shared, &compute) {
        // Padding that is computed once keeps every bit.
        assert_eq!(
            layout.unpack(&encode(&packed), D_MODEL),
            *compute,
            "{batch:?}"
        );
    }
    if let (Some(zero), Some(compute)) = (zero, compute) {
        // Padding that is not computed changes nothing for the tokens that are.
        for (slot, reported) in reported(&batch, PadRows::Zero).into_iter().enumerate() {
            let at = slot * D_MODEL..(slot + 1) * D_MODEL;
            for (zero, compute) in zero[at.clone()].iter().zip(&compute[at]) {
                match reported {
                    true => assert!((zero - compute).abs() <= 1e-4, "slot {slot}: {batch:?}"),
                    false => assert_eq!(*zero, 0.0, "slot {slot}: {batch:?}"),
                }
            }
        }
    }
    let half = batch.slice(0..rows.div_ceil(2));
    assert_eq!(half.ids(), &batch.ids()[..half.rows() * len]);
    for row in 0..rows {
        assert!(batch.real_ids(row).len() <= len);
    }
}

/// Whether a slot's token is part of the computation.
fn computed(batch: &PaddedBatch, pad_rows: PadRows) -> Vec<bool> {
    let all = vec![true; batch.rows() * batch.len()];
    match (batch.mask(), pad_rows) {
        (PaddedMask::Keys(keys), PadRows::Zero) => keys.clone(),
        (PaddedMask::Documents(ids), PadRows::Zero) => ids.iter().map(|&id| id >= 0).collect(),
        _ => all,
    }
}

/// Whether a slot's result is handed out rather than zeros.
fn reported(batch: &PaddedBatch, pad_rows: PadRows) -> Vec<bool> {
    match (batch.mask(), pad_rows) {
        (PaddedMask::Pairs(pairs), PadRows::Zero) => pairs
            .chunks(batch.len())
            .map(|query| query.contains(&true))
            .collect(),
        _ => computed(batch, pad_rows),
    }
}

/// Packs, checks the result, and encodes it; `None` if an id is refused, as it should be.
fn pack(batch: &PaddedBatch, pad_rows: PadRows, vocab_size: usize) -> Option<Vec<f32>> {
    let computed = computed(batch, pad_rows);
    let valid = |id: i64| (0..vocab_size as i64).contains(&id);
    let expected: Vec<usize> = (0..computed.len()).filter(|&slot| computed[slot]).collect();
    let all_valid = expected.iter().all(|&slot| valid(batch.ids()[slot]));
    let packed = batch.pack(pad_rows, vocab_size);
    assert_eq!(packed.is_ok(), all_valid, "{packed:?} of {batch:?}");
    let (packed, layout) = packed.ok()?;

    let starts = packed.row_starts();
    assert_eq!((starts[0], *starts.last()?), (0, packed.n_tokens()));
    assert!(starts.is_sorted());
    assert_eq!(packed.ids().len(), expected.len());
    if let Some(positions) = packed.positions() {
        assert_eq!(positions.len(), packed.n_tokens());
    }
    assert!(packed.max_span() <= batch.len());

    // Every token once, in its place: the packed tokens are numbered from 1.
    let numbers: Vec<f32> = (1..=packed.n_tokens())
        .map(|number| number as f32)
        .collect();
    let placed = layout.unpack(&numbers, 1);
    assert_eq!(placed.len(), batch.rows() * batch.len());
    let mut seen = vec![false; packed.n_tokens()];
    for ((slot, number), reported) in placed.iter().enumerate().zip(reported(batch, pad_rows)) {
        assert_eq!(*number != 0.0, reported, "slot {slot} of {batch:?}");
        if reported {
            let token = *number as usize - 1;
            assert!(!std::mem::replace(&mut seen[token], true));
            assert_eq!(i64::from(packed.ids()[token]), batch.ids()[slot]);
        }
    }
    Some(layout.unpack(&encode(&packed), D_MODEL))
}

/// The tiny model.
fn encoder() -> &'static Encoder<Reference> {
    static ENCODER: OnceLock<Encoder<Reference>> = OnceLock::new();
    ENCODER.get_or_init(|| {
        let config = format!(
            r#"{{"model_type": "t5", "vocab_size": {VOCAB}, "d_model": {D_MODEL}, "d_kv": 2,
                "d_ff": 3, "num_layers": 2, "num_heads": 2, "feed_forward_proj": "gated-gelu",
                "relative_attention_num_buckets": 8, "relative_attention_max_distance": 8}}"#
        );
        let config = T5Config::from_json(config.as_bytes()).unwrap();
        Encoder::load(Reference, config, &mut Made).unwrap()
    })
}

/// Runs the tiny model; everything must be a number.
fn encode(packed: &PackedBatch) -> Vec<f32> {
    let encoder = encoder();
    let encoded = encoder.encode(packed, &Pass::default()).unwrap();
    let pooled = encoder.pool(&encoded, packed, Pool::Mean).unwrap();
    assert_eq!(pooled.len(), packed.n_rows() * D_MODEL);
    let last = encoder.backend().read_stream(&encoded.last).unwrap();
    assert!(pooled.iter().chain(&last).all(|value| value.is_finite()));
    last
}

/// Weights made up from their names.
struct Made;

impl TakeTensor for Made {
    fn contains(&self, name: &str) -> bool {
        !name.contains("1.layer.0.SelfAttention.relative_attention_bias")
            && !name.ends_with("wi.weight")
    }

    fn require(&mut self, _: &[(String, Vec<usize>)]) -> quintic::Result<()> {
        Ok(())
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> quintic::Result<Tensor> {
        let mut state = name.bytes().fold(0x9E37_79B9_7F4A_7C15u64, |state, byte| {
            (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
        });
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|_| {
                state = state
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                (state >> 40) as f32 / (1 << 24) as f32 - 0.5
            })
            .collect();
        Ok(Tensor::from_f32(name, shape.to_vec(), &values))
    }
}
