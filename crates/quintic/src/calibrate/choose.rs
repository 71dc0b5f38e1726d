//! Which products go into integers.

use std::collections::BTreeMap;

use super::plan::Errors;
use crate::Result;
use crate::keep::Site;

/// The products that were chosen.
pub(super) struct Chosen<'a> {
    pub(super) in_integers: &'a [Site],
    /// Measured with these.
    pub(super) errors: Errors,
}

/// The sites, those first whose weights cost the least in integers: see the
/// [module](super) docs.
pub(super) fn order(
    sites: &BTreeMap<Site, u64>,
    alone: &BTreeMap<Site, Errors>,
    without: &Errors,
    at_most: &Errors,
) -> Vec<Site> {
    let share = |error: f64, least: f64, bound: f64| {
        let square = |x: f64| x * x;
        // A product may by chance bring an error below that without it.
        let lost = (square(error) - square(least)).max(0.0);
        match square(bound) - square(least) {
            room if room > 0.0 => lost / room,
            // Without any room all are alike but for what they cost.
            _ => lost,
        }
    };
    let cost = |site: &Site| {
        let errors = &alone[site];
        let states = share(errors.states, without.states, at_most.states);
        let logits = match (errors.logits, without.logits, at_most.logits) {
            (Some(error), Some(least), Some(bound)) => share(error, least, bound),
            _ => 0.0,
        };
        states.max(logits) / sites[site].max(1) as f64
    };
    let mut order: Vec<Site> = sites.keys().copied().collect();
    // Equal costs stay in the order of the model.
    order.sort_by(|a, b| cost(a).total_cmp(&cost(b)));
    order
}

/// The most of `order`, from the first on, whose measured error is at most the bound.
/// `without` and `all` are the errors of none and of all, of which the first is within the bound.
pub(super) fn choose<'a>(
    order: &'a [Site],
    at_most: &Errors,
    without: Errors,
    all: Errors,
    measure: &dyn Fn(&[Site]) -> Result<Errors>,
) -> Result<Chosen<'a>> {
    if all.within(at_most) {
        return Ok(Chosen {
            in_integers: order,
            errors: all,
        });
    }
    // `good` of them are within the bound, `bad` are not.
    let (mut good, mut errors, mut bad) = (0, without, order.len());
    while good + 1 < bad {
        let middle = good.midpoint(bad);
        let found = measure(&order[..middle])?;
        match found.within(at_most) {
            true => (good, errors) = (middle, found),
            false => bad = middle,
        }
    }
    Ok(Chosen {
        in_integers: &order[..good],
        errors,
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::keep::Stack;
    use crate::weight_type::ProductKind;

    fn site(layer: usize) -> Site {
        Site {
            stack: Stack::Encoder,
            layer,
            kind: ProductKind::Wo,
        }
    }

    fn errors(states: f64) -> Errors {
        Errors {
            states,
            logits: None,
        }
    }

    #[test]
    fn what_costs_least_a_weight_comes_first() {
        let sites = BTreeMap::from([
            (site(0), 100),
            (site(1), 100),
            (site(2), 1000),
            (site(3), 9),
        ]);
        // Squares above that of `without`: 3, 0, 15, none.
        let alone = [2.0, 1.0, 4.0, 0.5];
        let alone = alone.into_iter().enumerate();
        let alone = alone.map(|(at, error)| (site(at), errors(error))).collect();
        let found = order(&sites, &alone, &errors(1.0), &errors(5.0));
        assert_eq!(found, [1, 3, 2, 0].map(site));
    }

    #[test]
    fn logits_count_where_they_suffer_more() {
        let sites = BTreeMap::from([(site(0), 1), (site(1), 1)]);
        let both = |states, logits| Errors {
            states,
            logits: Some(logits),
        };
        let alone = BTreeMap::from([(site(0), both(1.1, 3.0)), (site(1), both(1.5, 1.0))]);
        let order = |bound| order(&sites, &alone, &both(1.0, 1.0), &bound);
        assert_eq!(order(both(5.0, 5.0)), [1, 0].map(site));
        // Logits may lose much more.
        assert_eq!(order(both(5.0, 500.0)), [0, 1].map(site));
    }

    #[test]
    fn the_most_that_is_within_the_bound_is_found_by_measuring() {
        let order: Vec<Site> = (0..9).map(site).collect();
        for most in 0..=9 {
            let n = Cell::new(0);
            let measure = |set: &[Site]| {
                n.set(n.get() + 1);
                Ok(errors(set.len() as f64))
            };
            let bound = errors(most as f64 + 0.5);
            let all = errors(9.0);
            let chosen = choose(&order, &bound, errors(0.0), all, &measure).unwrap();
            assert_eq!(chosen.in_integers, &order[..most]);
            assert_eq!(chosen.errors, errors(most as f64));
            assert!(n.get() <= 4, "{} passes", n.get());
        }
        // NaN is never within.
        let nan = |_: &[Site]| Ok(errors(f64::NAN));
        let chosen = choose(&order, &errors(1.0), errors(0.5), errors(f64::NAN), &nan).unwrap();
        assert_eq!((chosen.in_integers.len(), chosen.errors), (0, errors(0.5)));
    }
}
