use super::*;

fn padded(ids: &[i64], rows: usize, mask: PaddedMask) -> PaddedBatch {
    PaddedBatch::new(ids.to_vec(), rows, ids.len() / rows, mask).unwrap()
}

fn flags(text: &str) -> Vec<bool> {
    text.bytes()
        .filter(|b| *b != b' ')
        .map(|b| b == b'1')
        .collect()
}

#[test]
fn rows_are_laid_end_to_end() {
    let batch = PackedBatch::from_rows(&[vec![5, 6], vec![], vec![7]], 10).unwrap();
    assert_eq!(batch.ids(), [5, 6, 7]);
    assert_eq!(batch.row_starts(), [0, 2, 2, 3]);
    assert_eq!(
        (batch.n_rows(), batch.n_tokens(), batch.max_span()),
        (3, 3, 2)
    );
    let error = PackedBatch::from_rows(&[vec![1], vec![2, 10]], 10).unwrap_err();
    assert_eq!(
        error.to_string(),
        "row 1, token 1: token id 10 is outside the vocabulary, expected 0 to 9"
    );
    let error = PackedBatch::from_rows(&[[0]], 0).unwrap_err();
    assert!(error.message().ends_with("which has no ids"), "{error}");
    let empty = PackedBatch::from_rows::<Vec<u32>>(&[], 10).unwrap();
    assert_eq!(
        (empty.n_rows(), empty.n_tokens(), empty.max_span()),
        (0, 0, 0)
    );
}

#[test]
fn dropped_padding_leaves_zeros_and_may_hold_any_id() {
    let batch = padded(
        &[3, 4, -100, 5, 99, 99],
        2,
        PaddedMask::Keys(flags("110 100")),
    );
    let (packed, layout) = batch.pack(PadRows::Zero, 10).unwrap();
    assert_eq!(packed.ids(), [3, 4, 5]);
    assert_eq!(packed.row_starts(), [0, 2, 3]);
    assert_eq!(packed.positions(), None);
    assert_eq!(packed.mask(), &Mask::Full);
    assert_eq!(
        layout.unpack(&[1.0, 2.0, 3.0], 1),
        [1.0, 2.0, 0.0, 3.0, 0.0, 0.0]
    );
    assert!(
        batch.pack(PadRows::Compute, 10).is_err(),
        "a computed id must be valid"
    );
}

#[test]
fn left_padding_needs_no_positions_and_holes_do() {
    let left = padded(&[0, 0, 7, 8], 1, PaddedMask::Keys(flags("0011")));
    assert_eq!(left.pack(PadRows::Zero, 10).unwrap().0.positions(), None);
    let holes = padded(&[6, 0, 7, 8], 1, PaddedMask::Keys(flags("1011")));
    let (packed, layout) = holes.pack(PadRows::Zero, 10).unwrap();
    assert_eq!(packed.positions(), Some(&[0, 2, 3][..]));
    assert_eq!(packed.max_span(), 4);
    assert_eq!(layout.unpack(&[1.0, 2.0, 3.0], 1), [1.0, 0.0, 2.0, 3.0]);
}

#[test]
fn computed_padding_keeps_whole_rows() {
    let batch = padded(&[3, 4, 0, 5, 0, 0], 2, PaddedMask::Keys(flags("110 100")));
    let (packed, layout) = batch.pack(PadRows::Compute, 10).unwrap();
    assert_eq!(packed.row_starts(), [0, 3, 6]);
    assert_eq!(packed.mask(), &Mask::Keys(flags("110 100")));
    let values: Vec<f32> = (0..6).map(|v| v as f32).collect();
    assert_eq!(layout.unpack(&values, 1), values);
}

#[test]
fn a_fully_masked_row_is_empty() {
    let batch = padded(&[3, 4, 5, 6], 2, PaddedMask::Keys(flags("00 11")));
    let (packed, layout) = batch.pack(PadRows::Zero, 10).unwrap();
    assert_eq!(packed.row_starts(), [0, 0, 2]);
    assert_eq!(layout.unpack(&[1.0, 2.0], 1), [0.0, 0.0, 1.0, 2.0]);
}

#[test]
fn documents_become_rows() {
    let batch = padded(
        &[1, 2, 3, 4, 5],
        1,
        PaddedMask::Documents(vec![0, 0, 7, 7, -1]),
    );
    let (packed, layout) = batch.pack(PadRows::Zero, 10).unwrap();
    assert_eq!(packed.ids(), [1, 2, 3, 4]);
    assert_eq!(packed.row_starts(), [0, 2, 4]);
    assert_eq!(packed.positions(), None);
    assert_eq!(
        layout.unpack(&[1.0, 2.0, 3.0, 4.0], 1),
        [1.0, 2.0, 3.0, 4.0, 0.0]
    );

    let mixed = padded(&[1, 2, 3], 1, PaddedMask::Documents(vec![4, 1, 4]));
    let (packed, layout) = mixed.pack(PadRows::Zero, 10).unwrap();
    assert_eq!(packed.ids(), [2, 1, 3]);
    assert_eq!(packed.positions(), Some(&[1, 0, 2][..]));
    assert_eq!(layout.unpack(&[9.0, 1.0, 3.0], 1), [1.0, 9.0, 3.0]);

    let (packed, _) = mixed.pack(PadRows::Compute, 10).unwrap();
    assert_eq!(packed.mask(), &Mask::Pairs(flags("101 010 101")));
}

#[test]
fn a_blind_query_is_computed_for_others_and_reported_as_zero() {
    // Token 1 sees nothing, token 0 sees it.
    let batch = padded(&[1, 2], 1, PaddedMask::Pairs(flags("11 00")));
    let (packed, layout) = batch.pack(PadRows::Zero, 10).unwrap();
    assert_eq!(packed.n_tokens(), 2);
    assert_eq!(layout.unpack(&[1.0, 2.0], 1), [1.0, 0.0]);
    let (_, layout) = batch.pack(PadRows::Compute, 10).unwrap();
    assert_eq!(layout.unpack(&[1.0, 2.0], 1), [1.0, 2.0]);
}

#[test]
fn slices_are_the_rows_they_name() {
    let batch = padded(&[1, 2, 3, 4, 5, 6], 3, PaddedMask::Keys(flags("11 10 01")));
    let middle = batch.slice(1..3);
    assert_eq!((middle.rows(), middle.len()), (2, 2));
    assert_eq!(middle.ids(), [3, 4, 5, 6]);
    assert_eq!(middle.mask(), &PaddedMask::Keys(flags("10 01")));
    // Errors still name the row of the whole batch.
    let error = middle.pack(PadRows::Zero, 6).unwrap_err().to_string();
    assert!(error.starts_with("row 2, token 1: token id 6"), "{error}");
}

#[test]
fn a_truncated_layout_cuts_positions_off() {
    let batch = padded(&[1, 2, 3, 4, 5, 6], 2, PaddedMask::None);
    let (_, layout) = batch.pack(PadRows::Zero, 10).unwrap();
    let values: Vec<f32> = (0..6).map(|v| v as f32).collect();
    assert_eq!(
        layout.clone().truncated(2).unpack(&values, 1),
        [0.0, 1.0, 3.0, 4.0]
    );
    assert_eq!(layout.clone().truncated(9), layout);
}

#[test]
fn wrong_lengths_are_named() {
    let error = |mask| {
        PaddedBatch::new(vec![0; 6], 2, 3, mask)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        error(PaddedMask::Keys(vec![true; 5])),
        "`attention_mask` has 5 elements, expected [rows, len] with rows = 2, len = 3"
    );
    assert!(error(PaddedMask::Pairs(vec![true; 6])).contains("[rows, len, len]"));
    assert!(error(PaddedMask::Documents(vec![1])).contains("`document_ids` has 1"));
    assert!(PaddedBatch::new(vec![], usize::MAX, 2, PaddedMask::None).is_err());
}

#[test]
fn an_empty_batch_is_refused() {
    for (rows, len) in [(0, 5), (3, 0), (0, 0), (usize::MAX, 0)] {
        let error = PaddedBatch::new(vec![], rows, len, PaddedMask::None).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("expected at least one row of one token")
        );
    }
}

/// Columns of each row that are computed, from the marks of the tokens that results come from.
fn shared(batch: &PaddedBatch, reach: usize) -> (PackedBatch, Vec<f32>) {
    let (packed, layout) = batch
        .pack_sharing(PadRows::Compute, 10, Some(reach))
        .unwrap();
    // The column that each packed token was taken from.
    let n = batch.rows() * batch.len();
    let columns: Vec<f32> = (0..n).map(|slot| (slot % batch.len()) as f32).collect();
    let sources = layout.unpack(&layout.gather(&columns, 1), 1);
    (packed, sources)
}

#[test]
fn far_padding_of_one_id_is_computed_once() {
    let mask = |text: &str| PaddedMask::Keys(flags(text));
    let right = padded(&[3, 4, 0, 0, 0, 0, 0], 1, mask("1100000"));
    let (packed, sources) = shared(&right, 3);
    assert_eq!(packed.ids(), [3, 4, 0, 0, 0]);
    assert_eq!(packed.mask(), &Mask::Keys(flags("11000")));
    assert_eq!(packed.positions(), None);
    assert_eq!(sources, [0.0, 1.0, 2.0, 3.0, 4.0, 4.0, 4.0]);
    for (reach, n_tokens) in [(0, 3), (1, 3), (4, 6), (5, 7), (6, 7), (usize::MAX, 7)] {
        assert_eq!(shared(&right, reach).0.n_tokens(), n_tokens, "{reach}");
    }

    // Both sides, and a hole, which stays whatever its id.
    let both = padded(&[0, 0, 0, 5, 9, 6, 0, 0], 1, mask("00010100"));
    let (packed, sources) = shared(&both, 1);
    assert_eq!(packed.ids(), [0, 5, 9, 6, 0]);
    assert_eq!(packed.mask(), &Mask::Keys(flags("01010")));
    assert_eq!(sources, [2.0, 2.0, 2.0, 3.0, 4.0, 5.0, 6.0, 6.0]);

    // Another id beyond: that side stays whole, the other one does not. An id nearer by is no
    // reason.
    let mixed = padded(&[0, 0, 5, 7, 0, 0, 8], 1, mask("0010000"));
    assert_eq!(shared(&mixed, 1).1, [1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let mixed = padded(&[0, 0, 5, 7, 0, 0, 0], 1, mask("0010000"));
    assert_eq!(shared(&mixed, 2).1, [0.0, 1.0, 2.0, 3.0, 4.0, 4.0, 4.0]);

    // Rows without a real token are whole, and others do not notice.
    let blind = padded(&[0, 0, 0, 5, 0, 0], 2, mask("000 100"));
    let (packed, sources) = shared(&blind, 1);
    assert_eq!(packed.row_starts(), [0, 3, 5]);
    assert_eq!(sources, [0.0, 1.0, 2.0, 0.0, 1.0, 1.0]);

    // What is not shared is not computed under `Zero`, and other masks know no sides.
    let zero = right.pack_sharing(PadRows::Zero, 10, Some(1)).unwrap();
    assert_eq!(zero, right.pack(PadRows::Zero, 10).unwrap());
    let pairs = padded(&[1, 0, 0], 1, PaddedMask::Pairs(flags("100 100 100")));
    let whole = pairs.pack_sharing(PadRows::Compute, 10, Some(1)).unwrap();
    assert_eq!(whole, pairs.pack(PadRows::Compute, 10).unwrap());

    let wrong = padded(&[3, 10, 10, 10], 1, mask("1000"));
    assert!(wrong.pack_sharing(PadRows::Compute, 10, Some(1)).is_err());
}

#[test]
fn gathering_is_the_other_way() {
    let batch = padded(&[1, 2, 3, 4], 2, PaddedMask::Keys(flags("01 11")));
    let (_, layout) = batch.pack(PadRows::Zero, 10).unwrap();
    let values: Vec<f32> = (0..8).map(|v| v as f32).collect();
    let packed = layout.gather(&values, 2);
    assert_eq!(packed, [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    let cut = layout.clone().truncated(1);
    assert_eq!((cut.rows(), cut.len()), (2, 1));
    assert_eq!(cut.gather(&values, 2), packed, "of the whole batch");
    let mut out = [9.0; 8];
    layout.unpack_into(&packed, 2, &mut out);
    assert_eq!(out, [0.0, 0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    let mut out = [9.0; 4];
    cut.unpack_into(&packed, 2, &mut out);
    assert_eq!(out, [0.0, 0.0, 4.0, 5.0]);

    // A blind query has an embedding, though its own result is zeros.
    let batch = padded(&[1, 2], 1, PaddedMask::Pairs(flags("11 00")));
    let (_, layout) = batch.pack(PadRows::Zero, 10).unwrap();
    assert_eq!(layout.gather(&[5.0, 6.0], 1), [5.0, 6.0]);
    // Documents out of order.
    let mixed = padded(&[1, 2, 3], 1, PaddedMask::Documents(vec![4, 1, 4]));
    let (_, layout) = mixed.pack(PadRows::Zero, 10).unwrap();
    assert_eq!(layout.gather(&[1.0, 2.0, 3.0], 1), [2.0, 1.0, 3.0]);
}
