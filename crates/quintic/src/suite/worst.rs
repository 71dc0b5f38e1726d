//! The value of a case that is nearest to its bound.

use super::Verdict;

#[derive(Debug)]
struct Place {
    what: String,
    index: usize,
    count: usize,
    found: f64,
    expected: f64,
}

/// Collects the comparisons of a case.
#[derive(Debug, Default)]
pub(super) struct Worst {
    compared: usize,
    /// Largest magnitude that was expected.
    scale: f64,
    /// Difference over bound.
    ratio: f64,
    difference: f64,
    bound: f64,
    place: Option<Place>,
    /// Something that is no matter of degree.
    mismatch: Option<String>,
}

impl Worst {
    /// Compares values, each with a bound of its own.
    pub(super) fn compare(
        &mut self,
        what: &str,
        found: &[f32],
        expected: &[f32],
        bound: impl Fn(usize) -> f64,
    ) {
        if found.len() != expected.len() {
            self.mismatch(format!(
                "{what}: {} values, expected {}",
                found.len(),
                expected.len()
            ));
            return;
        }
        self.compared += 1;
        for (index, (&found, &expected)) in found.iter().zip(expected).enumerate() {
            let (found, expected) = (f64::from(found), f64::from(expected));
            self.scale = self.scale.max(expected.abs());
            if found == expected {
                continue;
            }
            let bound = bound(index);
            let difference = match (found - expected).abs() {
                difference if difference.is_nan() => f64::INFINITY,
                difference => difference,
            };
            let ratio = difference / bound;
            // A bound that is NaN allows nothing.
            if ratio > self.ratio || ratio.is_nan() {
                self.ratio = if ratio.is_nan() { f64::INFINITY } else { ratio };
                (self.difference, self.bound) = (difference, bound);
                self.place = Some(Place {
                    what: what.to_owned(),
                    index,
                    count: 0,
                    found,
                    expected,
                });
            }
        }
        if let Some(place) = self.place.as_mut().filter(|place| place.count == 0) {
            place.count = expected.len();
        }
    }

    /// Compares a number that summarises others.
    pub(super) fn number(&mut self, what: &str, difference: f64, bound: f64) {
        self.compared += 1;
        self.scale = self.scale.max(1.0);
        let ratio = match difference == 0.0 {
            true => 0.0,
            false => difference / bound,
        };
        if ratio > self.ratio || ratio.is_nan() {
            self.ratio = if ratio.is_nan() { f64::INFINITY } else { ratio };
            (self.difference, self.bound) = (difference, bound);
            self.place = Some(Place {
                what: what.to_owned(),
                index: 0,
                count: 1,
                found: difference,
                expected: 0.0,
            });
        }
    }

    /// Notes a difference that has no size.
    pub(super) fn mismatch(&mut self, what: String) {
        self.mismatch.get_or_insert(what);
    }

    /// Compares what is equal or not.
    pub(super) fn equal<T: PartialEq + std::fmt::Debug>(
        &mut self,
        what: &str,
        found: &T,
        expected: &T,
    ) {
        self.compared += 1;
        if found != expected {
            self.mismatch(format!("{what}: found {found:?}, expected {expected:?}"));
        }
    }

    /// Error and bound as shares of the largest expected value.
    pub(super) fn relative(&self) -> (f64, f64) {
        if self.mismatch.is_some() {
            return (f64::INFINITY, 0.0);
        }
        let scale = if self.scale > 0.0 { self.scale } else { 1.0 };
        (self.difference / scale, self.bound / scale)
    }

    pub(super) fn verdict(&self) -> Verdict {
        if let Some(what) = &self.mismatch {
            return Verdict::Failed(what.clone());
        }
        if self.compared == 0 {
            return Verdict::Failed("nothing was compared".to_owned());
        }
        match &self.place {
            Some(place) if self.ratio > 1.0 => Verdict::Failed(format!(
                "{}, value {} of {}: found {:e}, expected {:e}, {:e} apart with {:e} allowed",
                place.what,
                place.index,
                place.count,
                place.found,
                place.expected,
                self.difference,
                self.bound
            )),
            _ => Verdict::Passed,
        }
    }
}
