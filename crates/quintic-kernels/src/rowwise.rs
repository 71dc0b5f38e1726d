//! Everything that is not a product, written once over lanes and compiled for each
//! instruction set.

use crate::Activation;
use crate::blocks::fp8::from_f16;
use crate::math::{LANES, activate, exp, fma, from_bf16, split_bf16, to_bf16};
use crate::memory::Shared;
use crate::micro::{CHUNK, PANEL};
use crate::operand::Sink;

/// What becomes of a product's sums.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Finish {
    /// Stored.
    Store(Sink),
    /// Added to rows of f32, `row` elements apart.
    Add { out: Shared<f32>, row: usize },
    /// Stored scaled, as rows of f32, `row` elements apart.
    Scale {
        out: Shared<f32>,
        row: usize,
        scale: f32,
    },
    /// `act(sum)`, stored.
    Activate(Activation, Sink),
    /// `act(gate) * up`, stored: a panel is 16 columns of gates, then the same 16 of ups.
    Gate(Activation, Sink),
}

/// Sums of a panel for some rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FinishBlock {
    /// `[rows, 32]`, rows adjacent.
    pub(crate) sums: *const f32,
    pub(crate) rows: usize,
    /// Token of the first row.
    pub(crate) token: usize,
    /// First column of the result.
    pub(crate) column: usize,
    /// Columns of the result.
    pub(crate) columns: usize,
    pub(crate) finish: Finish,
}

/// A norm of some rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NormBlock<'a> {
    /// `[rows, gain.len()]`, rows adjacent.
    pub(crate) x: &'a [f32],
    /// Width of a row.
    pub(crate) columns: usize,
    /// `None`: the gain has been multiplied into the next product.
    pub(crate) gain: Option<&'a [f32]>,
    pub(crate) eps: f32,
    /// Token of the first row.
    pub(crate) token: usize,
    pub(crate) out: Sink,
}

/// Rows whose largest values are looked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Maxima {
    /// `[rows, n]`, rows `stride` apart.
    pub(crate) values: *const f32,
    pub(crate) stride: usize,
    pub(crate) rows: usize,
    pub(crate) n: usize,
    /// For each row and each of 16 lanes the largest value so far, which ignores NaN.
    pub(crate) largest: *mut [f32; LANES],
}

/// Row operations of an instruction set. All are `unsafe` to call for one reason: the
/// instruction set must be there. What else they ask for stands at each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rowwise {
    /// The sums exist; no other thread touches these elements of the result.
    pub(crate) finish: unsafe fn(&FinishBlock),
    /// No other thread touches these rows of the result.
    pub(crate) norm: unsafe fn(&NormBlock<'_>),
    /// The largest value, -inf if there is none; ignores NaN.
    pub(crate) max: unsafe fn(&[f32]) -> f32,
    /// The largest values of rows so far, lane by lane, see [`Maxima`].
    pub(crate) maxima: unsafe fn(&Maxima),
    /// Replaces `x` by `e^(x - shift)` and returns the sum of what is stored.
    pub(crate) exp: unsafe fn(&mut [f32], f32) -> f32,
    /// As `exp`, but writes bf16 and sums what they are after rounding.
    pub(crate) exp_bf16: unsafe fn(&[f32], f32, &mut [u16]) -> f32,
    /// Both bf16 parts of each value; all three are as long.
    pub(crate) split: unsafe fn(&[f32], &mut [u16], &mut [u16]),
    /// `x *= factor`.
    pub(crate) scale: unsafe fn(&mut [f32], f32),
    /// Rows of a panel's sums, each times a factor of its own: as many rows as factors exist.
    pub(crate) scale_rows: unsafe fn(*mut f32, &[f32]),
    /// `out[i] = a . b[i * stride..]`. The rows of `b` exist, each as long as `a`. The fourth is how
    /// far ahead of `b` stands what is read next, for who fetches it.
    pub(crate) dots: unsafe fn(&[f32], *const f32, usize, usize, &mut [f32]),
    /// `out += weights[i] * b[i * stride..]`. The rows of `b` exist, each as long as `out`; the fourth
    /// as above.
    pub(crate) mix: unsafe fn(&[f32], *const f32, usize, usize, &mut [f32]),
    /// bf16 chunks in panel order to rows of 32 f32: `out` has `32 * chunks` rows.
    pub(crate) widen_bf16: unsafe fn(&[u16], &mut [f32]),
    /// f16 to f32, one by one.
    pub(crate) widen_f16: unsafe fn(&[u16], &mut [f32]),
}

/// Compiles the bodies of this module for an instruction set, as `ROWWISE`.
macro_rules! instantiate {
    ($features:literal, $fma:literal) => {
        crate::rowwise::instantiate!(@ $fma, #[target_feature(enable = $features)]);
    };
    ($fma:literal) => {
        crate::rowwise::instantiate!(@ $fma,);
    };
    (@ $fma:literal, $(#[$feature:meta])?) => {
        pub(crate) const ROWWISE: crate::rowwise::Rowwise = crate::rowwise::Rowwise {
            finish: instance::finish,
            norm: instance::norm,
            max: instance::max,
            maxima: instance::maxima,
            exp: instance::exp,
            exp_bf16: instance::exp_bf16,
            scale: instance::scale,
            scale_rows: instance::scale_rows,
            split: instance::split,
            dots: instance::dots,
            mix: instance::mix,
            widen_bf16: instance::widen_bf16,
            widen_f16: instance::widen_f16,
        };

        /// The bodies of `rowwise`, compiled for this instruction set.
        mod instance {
            // The one thing that every function here asks for: the instruction set.
            #![allow(clippy::missing_safety_doc)]
            use crate::rowwise::{FinishBlock, Maxima, NormBlock, body};

            $(#[$feature])?
            pub(super) unsafe fn finish(block: &FinishBlock) {
                // SAFETY: by the caller's word.
                unsafe { body::finish::<$fma>(block) }
            }
            $(#[$feature])?
            pub(super) unsafe fn norm(block: &NormBlock<'_>) {
                // SAFETY: by the caller's word.
                unsafe { body::norm(block) }
            }
            $(#[$feature])?
            pub(super) unsafe fn max(x: &[f32]) -> f32 {
                body::max(x)
            }
            $(#[$feature])?
            pub(super) unsafe fn maxima(rows: &Maxima) {
                // SAFETY: by the caller's word.
                unsafe { body::maxima(rows) }
            }
            $(#[$feature])?
            pub(super) unsafe fn scale_rows(sums: *mut f32, factors: &[f32]) {
                // SAFETY: by the caller's word.
                unsafe { body::scale_rows(sums, factors) }
            }
            $(#[$feature])?
            pub(super) unsafe fn exp(x: &mut [f32], shift: f32) -> f32 {
                body::exp_row::<$fma>(x, shift)
            }
            $(#[$feature])?
            pub(super) unsafe fn exp_bf16(x: &[f32], shift: f32, out: &mut [u16]) -> f32 {
                body::exp_row_bf16::<$fma>(x, shift, out)
            }
            $(#[$feature])?
            pub(super) unsafe fn scale(x: &mut [f32], factor: f32) {
                body::scale(x, factor)
            }
            $(#[$feature])?
            pub(super) unsafe fn split(x: &[f32], high: &mut [u16], low: &mut [u16]) {
                body::split(x, high, low)
            }
            $(#[$feature])?
            pub(super) unsafe fn dots(a: &[f32], b: *const f32, stride: usize, _: usize, out: &mut [f32]) {
                // SAFETY: by the caller's word.
                unsafe { body::dots::<$fma>(a, b, stride, out) }
            }
            $(#[$feature])?
            pub(super) unsafe fn mix(weights: &[f32], b: *const f32, stride: usize, _: usize, out: &mut [f32]) {
                // SAFETY: by the caller's word.
                unsafe { body::mix::<$fma>(weights, b, stride, out) }
            }
            $(#[$feature])?
            pub(super) unsafe fn widen_bf16(panel: &[u16], out: &mut [f32]) {
                body::widen_bf16(panel, out)
            }
            $(#[$feature])?
            pub(super) unsafe fn widen_f16(values: &[u16], out: &mut [f32]) {
                body::widen_f16(values, out)
            }
        }
    };
}
pub(crate) use instantiate;

/// The bodies. Always inlined, so that they are compiled with the features of their caller.
pub(crate) mod body {
    use super::*;

    type Lanes = [f32; LANES];

    #[inline(always)]
    fn map(mut lanes: Lanes, f: impl Fn(f32) -> f32) -> Lanes {
        for lane in &mut lanes {
            *lane = f(*lane);
        }
        lanes
    }

    /// One loop for each activation, so that the choice is not made lane by lane.
    #[inline(always)]
    fn activate_lanes<const FMA: bool>(activation: Activation, lanes: Lanes) -> Lanes {
        macro_rules! one {
            ($($name:ident)*) => {
                match activation {
                    $(Activation::$name => map(lanes, |x| activate::<FMA>(Activation::$name, x)),)*
                }
            };
        }
        one!(Relu GeluTanh GeluErf QuickGelu Silu Tanh Sigmoid Linear)
    }

    /// Sixteen products are summed lane by lane, then the lanes pairwise.
    ///
    /// # Safety
    ///
    /// As [`Rowwise::dots`].
    #[inline(always)]
    pub(crate) unsafe fn dots<const FMA: bool>(
        a: &[f32],
        b: *const f32,
        stride: usize,
        out: &mut [f32],
    ) {
        let (chunks, rest) = a.as_chunks::<LANES>();
        for (row, out) in out.iter_mut().enumerate() {
            // SAFETY: by the caller's word.
            let b = unsafe { std::slice::from_raw_parts(b.add(row * stride), a.len()) };
            let (b_chunks, b_rest) = b.as_chunks::<LANES>();
            let mut sums = [0.0f32; LANES];
            for (a, b) in chunks.iter().zip(b_chunks) {
                for lane in 0..LANES {
                    sums[lane] = fma::<FMA>(a[lane], b[lane], sums[lane]);
                }
            }
            for (lane, (a, b)) in rest.iter().zip(b_rest).enumerate() {
                sums[lane] = fma::<FMA>(*a, *b, sums[lane]);
            }
            let mut n = LANES;
            while n > 1 {
                n /= 2;
                for lane in 0..n {
                    sums[lane] += sums[lane + n];
                }
            }
            *out = sums[0];
        }
    }

    /// Sums of 64 columns stay in registers while rows pass; one row after the other.
    ///
    /// # Safety
    ///
    /// As [`Rowwise::mix`].
    #[inline(always)]
    pub(crate) unsafe fn mix<const FMA: bool>(
        weights: &[f32],
        b: *const f32,
        stride: usize,
        out: &mut [f32],
    ) {
        const COLUMNS: usize = 4 * LANES;
        let n = out.len();
        let mut column = 0;
        while column + COLUMNS <= n {
            let mut sums = [[0.0f32; LANES]; 4];
            for (row, &weight) in weights.iter().enumerate() {
                // SAFETY: by the caller's word.
                let b = unsafe { &*b.add(row * stride + column).cast::<[[f32; LANES]; 4]>() };
                for (sums, b) in sums.iter_mut().zip(b) {
                    for lane in 0..LANES {
                        sums[lane] = fma::<FMA>(weight, b[lane], sums[lane]);
                    }
                }
            }
            for (out, sum) in out[column..][..COLUMNS].iter_mut().zip(sums.as_flattened()) {
                *out += sum;
            }
            column += COLUMNS;
        }
        if column < n {
            let out = &mut out[column..];
            let mut sums = [0.0f32; COLUMNS];
            for (row, &weight) in weights.iter().enumerate() {
                // SAFETY: by the caller's word.
                let b =
                    unsafe { std::slice::from_raw_parts(b.add(row * stride + column), out.len()) };
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = fma::<FMA>(weight, *b, *sum);
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out += sum;
            }
        }
    }

    /// Calls `store` with 16 results at a time: `(token, column, lanes, how many of them
    /// count)`. `FULL` says that all do, which keeps lanes out of memory.
    #[inline(always)]
    fn halves<const FULL: bool>(
        block: &FinishBlock,
        mut store: impl FnMut(usize, usize, Lanes, usize),
    ) {
        for row in 0..block.rows {
            for half in 0..2 {
                let column = block.column + half * LANES;
                let n = match FULL {
                    true => LANES,
                    false => block.columns.saturating_sub(column).min(LANES),
                };
                // SAFETY: the sums of a panel's row are 32 values.
                let lanes = unsafe { *block.sums.add(row * PANEL + half * LANES).cast::<Lanes>() };
                store(block.token + row, column, lanes, n);
            }
        }
    }

    #[inline(always)]
    unsafe fn put<const FULL: bool>(
        sink: &Sink,
        token: usize,
        column: usize,
        lanes: Lanes,
        n: usize,
    ) {
        // SAFETY: by the caller's word; a panel's halves are half chunks of the result.
        unsafe {
            if FULL {
                sink.store(token, column, &lanes);
            } else {
                sink.store_n(token, column, &lanes[..n]);
            }
        }
    }

    #[inline(always)]
    unsafe fn f32_row<'a>(out: Shared<f32>, at: usize, n: usize) -> &'a mut [f32] {
        // SAFETY: by the caller's word.
        unsafe { std::slice::from_raw_parts_mut(out.get().add(at), n) }
    }

    /// # Safety
    ///
    /// As [`Rowwise::finish`].
    #[inline(always)]
    pub(crate) unsafe fn finish<const FMA: bool>(block: &FinishBlock) {
        let gated = matches!(block.finish, Finish::Gate(..));
        let width = if gated { LANES } else { PANEL };
        // SAFETY: by the caller's word.
        unsafe {
            if block.column + width <= block.columns {
                finish_columns::<FMA, true>(block);
            } else {
                finish_columns::<FMA, false>(block);
            }
        }
    }

    #[inline(always)]
    unsafe fn finish_columns<const FMA: bool, const FULL: bool>(block: &FinishBlock) {
        // SAFETY (all of them): the elements are this thread's, by the caller's word.
        match block.finish {
            Finish::Store(sink) => halves::<FULL>(block, |token, column, lanes, n| {
                // SAFETY: see above.
                unsafe { put::<FULL>(&sink, token, column, lanes, n) };
            }),
            Finish::Add { out, row } => halves::<FULL>(block, |token, column, lanes, n| {
                // SAFETY: see above.
                let out = unsafe { f32_row(out, token * row + column, n) };
                for (out, lane) in out.iter_mut().zip(lanes) {
                    *out += lane;
                }
            }),
            Finish::Scale { out, row, scale } => {
                halves::<FULL>(block, |token, column, lanes, n| {
                    // SAFETY: see above.
                    let out = unsafe { f32_row(out, token * row + column, n) };
                    for (out, lane) in out.iter_mut().zip(lanes) {
                        *out = scale * lane;
                    }
                })
            }
            Finish::Activate(activation, sink) => {
                halves::<FULL>(block, |token, column, lanes, n| {
                    let lanes = activate_lanes::<FMA>(activation, lanes);
                    // SAFETY: see above.
                    unsafe { put::<FULL>(&sink, token, column, lanes, n) };
                });
            }
            Finish::Gate(activation, sink) => {
                let n = block.columns.saturating_sub(block.column).min(LANES);
                for row in 0..block.rows {
                    // SAFETY: the sums of a panel's row are 32 values.
                    let [gate, up] = unsafe { *block.sums.add(row * PANEL).cast::<[Lanes; 2]>() };
                    let mut lanes = activate_lanes::<FMA>(activation, gate);
                    for (lane, up) in lanes.iter_mut().zip(up) {
                        *lane *= up;
                    }
                    // SAFETY: see above.
                    unsafe { put::<FULL>(&sink, block.token + row, block.column, lanes, n) };
                }
            }
        }
    }

    /// # Safety
    ///
    /// As [`Rowwise::norm`].
    #[inline(always)]
    pub(crate) unsafe fn norm(block: &NormBlock<'_>) {
        let columns = block.columns;
        for (row, x) in block.x.chunks_exact(columns).enumerate() {
            let mean = sum_of_squares(x) / columns as f32;
            let scale = 1.0 / (mean + block.eps).sqrt();
            let token = block.token + row;
            let gain = |at: usize| match block.gain {
                Some(gain) => gain[at],
                None => 1.0,
            };
            let whole = columns - columns % LANES;
            for at in (0..whole).step_by(LANES) {
                let mut lanes = [0.0; LANES];
                lanes.copy_from_slice(&x[at..at + LANES]);
                let mut lanes = map(lanes, |x| x * scale);
                if let Some(gain) = block.gain {
                    for (lane, gain) in lanes.iter_mut().zip(&gain[at..at + LANES]) {
                        *lane *= gain;
                    }
                }
                // SAFETY: by the caller's word.
                unsafe { block.out.store(token, at, &lanes) };
            }
            for (at, x) in x.iter().enumerate().skip(whole) {
                // SAFETY: by the caller's word.
                unsafe { block.out.store(token, at, &[x * scale * gain(at)]) };
            }
        }
    }

    /// Squares are summed in 64 partial sums, then pairwise: the error of a sum of `n` terms
    /// is at most `n / 64 + 6` roundings.
    #[inline(always)]
    fn sum_of_squares(x: &[f32]) -> f32 {
        const WIDTH: usize = 4 * LANES;
        let mut sums = [0.0f32; WIDTH];
        let mut blocks = x.chunks_exact(WIDTH);
        for block in &mut blocks {
            for (sum, &x) in sums.iter_mut().zip(block) {
                *sum += x * x;
            }
        }
        for (sum, &x) in sums.iter_mut().zip(blocks.remainder()) {
            *sum += x * x;
        }
        pairwise(sums)
    }

    /// The sum of all lanes.
    #[inline(always)]
    fn pairwise<const N: usize>(mut lanes: [f32; N]) -> f32 {
        let mut n = N;
        while n > 1 {
            n /= 2;
            for i in 0..n {
                lanes[i] += lanes[i + n];
            }
        }
        lanes[0]
    }

    #[inline(always)]
    pub(crate) fn max(x: &[f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let mut blocks = x.chunks_exact(LANES);
        for block in &mut blocks {
            for (lane, &x) in lanes.iter_mut().zip(block) {
                *lane = if x > *lane { x } else { *lane };
            }
        }
        for (lane, &x) in lanes.iter_mut().zip(blocks.remainder()) {
            *lane = if x > *lane { x } else { *lane };
        }
        let mut n = LANES;
        while n > 1 {
            n /= 2;
            for i in 0..n {
                lanes[i] = if lanes[i + n] > lanes[i] {
                    lanes[i + n]
                } else {
                    lanes[i]
                };
            }
        }
        lanes[0]
    }

    /// # Safety
    ///
    /// The values and the lanes exist.
    #[inline(always)]
    pub(crate) unsafe fn maxima(rows: &Maxima) {
        for row in 0..rows.rows {
            // SAFETY: by the caller's word.
            let (values, largest) = unsafe {
                let values = std::slice::from_raw_parts(rows.values.add(row * rows.stride), rows.n);
                (values, &mut *rows.largest.add(row))
            };
            for block in values.chunks(LANES) {
                for (lane, &x) in largest.iter_mut().zip(block) {
                    *lane = if x > *lane { x } else { *lane };
                }
            }
        }
    }

    /// # Safety
    ///
    /// So many rows of 32 values exist.
    #[inline(always)]
    pub(crate) unsafe fn scale_rows(sums: *mut f32, factors: &[f32]) {
        for (row, &factor) in factors.iter().enumerate() {
            // SAFETY: by the caller's word.
            let row = unsafe { &mut *sums.add(row * PANEL).cast::<[f32; PANEL]>() };
            for value in row {
                *value *= factor;
            }
        }
    }

    #[inline(always)]
    pub(crate) fn exp_row<const FMA: bool>(x: &mut [f32], shift: f32) -> f32 {
        let mut sums = [0.0; LANES];
        let mut blocks = x.chunks_exact_mut(LANES);
        for block in &mut blocks {
            for (sum, x) in sums.iter_mut().zip(block) {
                *x = exp::<FMA>(*x - shift);
                *sum += *x;
            }
        }
        for (sum, x) in sums.iter_mut().zip(blocks.into_remainder()) {
            *x = exp::<FMA>(*x - shift);
            *sum += *x;
        }
        pairwise(sums)
    }

    #[inline(always)]
    pub(crate) fn exp_row_bf16<const FMA: bool>(x: &[f32], shift: f32, out: &mut [u16]) -> f32 {
        let mut sums = [0.0; LANES];
        let one = |sum: &mut f32, x: f32, out: &mut u16| {
            *out = to_bf16(exp::<FMA>(x - shift));
            *sum += from_bf16(*out);
        };
        let mut blocks = x.chunks_exact(LANES);
        let mut outs = out[..x.len()].chunks_exact_mut(LANES);
        for (block, out) in (&mut blocks).zip(&mut outs) {
            for i in 0..LANES {
                one(&mut sums[i], block[i], &mut out[i]);
            }
        }
        let rest = blocks.remainder().iter().zip(outs.into_remainder());
        for (sum, (&x, out)) in sums.iter_mut().zip(rest) {
            one(sum, x, out);
        }
        pairwise(sums)
    }

    #[inline(always)]
    pub(crate) fn scale(x: &mut [f32], factor: f32) {
        for x in x {
            *x *= factor;
        }
    }

    #[inline(always)]
    pub(crate) fn split(x: &[f32], high: &mut [u16], low: &mut [u16]) {
        for ((&x, high), low) in x.iter().zip(high).zip(low) {
            (*high, *low) = split_bf16(x);
        }
    }

    #[inline(always)]
    pub(crate) fn widen_bf16(panel: &[u16], out: &mut [f32]) {
        for (chunk, out) in panel
            .chunks_exact(CHUNK * PANEL)
            .zip(out.chunks_exact_mut(CHUNK * PANEL))
        {
            for pair in 0..CHUNK / 2 {
                let rows = &mut out[pair * 2 * PANEL..][..2 * PANEL];
                let (even, odd) = rows.split_at_mut(PANEL);
                for half in 0..2 {
                    let pairs = &chunk[(half * 16 + pair) * 32..][..32];
                    for column in 0..16 {
                        even[half * 16 + column] = from_bf16(pairs[2 * column]);
                        odd[half * 16 + column] = from_bf16(pairs[2 * column + 1]);
                    }
                }
            }
        }
    }

    #[inline(always)]
    pub(crate) fn widen_f16(values: &[u16], out: &mut [f32]) {
        for (out, &bits) in out.iter_mut().zip(values) {
            *out = from_f16(bits);
        }
    }
}
