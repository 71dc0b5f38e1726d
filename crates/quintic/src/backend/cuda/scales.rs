//! Powers of two that keep f16 from overflowing, found while running.
//!
//! T5 was trained in bfloat16, and two of its activations leave the range of f16: the result of
//! the feed-forward layer's first product on its way to the gate, and the product of gate and up
//! (and the residual stream, which is f32 here). Each first product of a feed-forward layer has
//! two exponents: the product is multiplied by `2^-inner` before it is rounded, and what leaves
//! the gate by `2^-outer`; whoever reads the values multiplies by the opposite in f32. Both are
//! exact, but for numbers that become subnormal.
//!
//! The kernels leave the largest magnitudes that they met in device memory. After a pass they are
//! looked at: if 16 bits did not hold them, the exponents are raised and the pass is run again.
//! Exponents never fall, so this happens a few times in a model's life.

use parking_lot::Mutex;
use quintic_cuda::device::Address;
use quintic_cuda::memory::{Buffer, Memory};

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::backend::scale::{LARGEST, Scale, raised};
use crate::keep::Site;

/// Feed-forward layers that can have a scale.
const SLOTS: usize = 4096;
impl Scale {
    /// What it has to be, if `peaks` are the largest magnitudes of the product and behind the
    /// gate.
    fn raised(self, peaks: [f32; 2]) -> Self {
        let [product, gated] = peaks;
        if product.is_infinite() {
            // Nothing is known but that it was too large; what comes out of the gate is a
            // consequence.
            return Scale {
                inner: self.inner + 4,
                ..self
            };
        }
        Scale {
            inner: raised(self.inner, product),
            outer: raised(self.outer, gated),
        }
    }

    /// Whether 16 bits held everything.
    fn held(self, peaks: [f32; 2]) -> bool {
        peaks[0].is_finite() && peaks[1] * self.outer_factor() <= LARGEST
    }
}

/// What a look at the peaks of a pass found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Everything was held.
    Held,
    /// Everything was held, but there is not much room: the next pass has other scales.
    Tight,
    /// The pass has to be run again, with the scales that there are now.
    Again,
    /// Something else has overflowed.
    Lost,
}

/// The scales of all products, and the device's memory of peaks.
#[derive(Debug)]
pub(super) struct Scales {
    /// `[SLOTS, 2]` peaks, then a flag: a mean square was not finite.
    peaks: Buffer,
    scales: Mutex<Vec<Own>>,
    n_again: AtomicU64,
}

/// One product's.
#[derive(Debug, Default)]
struct Own {
    scale: Scale,
    /// Which product of a model it is, if that was said.
    site: Option<Site>,
}

impl Scales {
    pub(super) fn new(memory: &Arc<Memory>) -> quintic_cuda::Result<Self> {
        let peaks = memory.buffer((2 * SLOTS + 1) * 4)?;
        peaks.clear()?;
        Ok(Scales {
            peaks,
            scales: Mutex::new(Vec::new()),
            n_again: AtomicU64::new(0),
        })
    }

    /// A slot for one more product; `None` if there are too many.
    pub(super) fn slot(&self) -> Option<usize> {
        let mut scales = self.scales.lock();
        scales.push(Own::default());
        Some(scales.len() - 1).filter(|&slot| slot < SLOTS)
    }

    pub(super) fn of(&self, slot: usize) -> Scale {
        self.scales.lock()[slot].scale
    }

    /// Says which product of a model has a slot.
    pub(super) fn name(&self, slot: usize, site: Site) {
        self.scales.lock()[slot].site = Some(site);
    }

    /// Raises the exponents of these products to these.
    pub(super) fn start(&self, known: &[(Site, Scale)]) {
        for own in self.scales.lock().iter_mut() {
            let starts = known.iter().filter(|(site, _)| own.site == Some(*site));
            own.scale = starts.fold(own.scale, |scale, (_, start)| scale.max(*start));
        }
    }

    /// Passes that were run again so far.
    pub(super) fn n_again(&self) -> u64 {
        self.n_again.load(Ordering::Relaxed)
    }

    /// Where a product's peaks go.
    pub(super) fn peaks_of(&self, slot: usize) -> Address {
        self.peaks.address().offset(8 * slot)
    }

    /// Where a norm notes that its input was not finite.
    pub(super) fn overflow(&self) -> Address {
        self.peaks.address().offset(8 * SLOTS)
    }

    /// Forgets the peaks of passes before.
    pub(super) fn reset(&self) -> quintic_cuda::Result<()> {
        self.peaks.clear()
    }

    /// Waits for the pass, and raises what has to be raised.
    pub(super) fn look(&self) -> quintic_cuda::Result<Verdict> {
        let mut scales = self.scales.lock();
        let n_used = scales.len().min(SLOTS);
        let bits: Vec<u32> = self.peaks.read(0, 2 * n_used)?;
        let overflow: Vec<u32> = self.peaks.read(8 * SLOTS, 1)?;
        let (mut held, mut changed) = (true, false);
        for (Own { scale, .. }, bits) in scales.iter_mut().zip(bits.as_chunks::<2>().0) {
            let peaks = bits.map(f32::from_bits);
            let raised = scale.raised(peaks);
            held = scale.held(peaks);
            changed |= raised != *scale;
            *scale = raised;
            // Slots stand in the order of the layers: what lies behind has seen infinities.
            if !held {
                break;
            }
        }
        Ok(match (held && overflow[0] == 0, changed) {
            (true, false) => Verdict::Held,
            (true, true) => Verdict::Tight,
            (false, true) => {
                self.n_again.fetch_add(1, Ordering::Relaxed);
                Verdict::Again
            }
            (false, false) => Verdict::Lost,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::scale::HEADROOM;

    #[test]
    fn scales_rise_until_the_peaks_fit_with_room() {
        let fresh = Scale::default();
        assert_eq!(fresh.raised([100.0, 30_000.0]), fresh);
        let raised = fresh.raised([100.0, 1.0e6]);
        assert_eq!((raised.inner, raised.outer), (0, 7));
        assert!(1.0e6 * raised.outer_factor() * HEADROOM <= LARGEST);
        assert_eq!(raised.raised([100.0, 1.0e6]), raised);
        // The product itself was too large: by how much cannot be known.
        let blind = fresh.raised([f32::INFINITY, f32::NAN]);
        assert_eq!((blind.inner, blind.outer), (4, 0));
        assert!(!fresh.held([f32::INFINITY, f32::NAN]) && !fresh.held([1.0, 70_000.0]));
        // Not this product's doing, and no scale would help.
        assert_eq!(fresh.raised([f32::NAN, f32::NAN]), fresh);
        let known = blind.raised([300_000.0, 1.0e9]);
        assert!(300_000.0 * known.inner_factor() <= LARGEST / 2.0);
        assert!(1.0e9 * known.outer_factor() * HEADROOM <= LARGEST);
        assert_eq!(known.inner_factor().log2().fract(), 0.0);
    }
}
