//! How many tokens a pass is filled up to.
//!
//! Every number of tokens would be a recorded pass, and a set of tuned products, of its own. The
//! steps cost little: below some 250 tokens a pass takes as long as its weights take to be read,
//! and above they are at most one part in eight.

/// The next number of tokens that passes are computed for.
pub(super) fn round_up(tokens: usize) -> usize {
    let step = match tokens {
        0..=128 => 16,
        129..=512 => 32,
        513..=1024 => 64,
        1025..=4096 => 256,
        _ => 512,
    };
    tokens.next_multiple_of(step)
}

/// Whether passes are computed for that number of tokens.
pub(super) fn is_round(tokens: usize) -> bool {
    tokens > 0 && round_up(tokens) == tokens
}

/// The number of tiles that a recorded pass has blocks for: those that are missing end at once.
pub(super) fn round_up_tiles(tiles: usize) -> usize {
    tiles.next_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_small_and_rounding_is_idempotent() {
        assert_eq!(round_up(0), 0);
        for tokens in 1..20_000 {
            let round = round_up(tokens);
            assert!(round >= tokens && is_round(round), "{tokens}");
            assert!(
                round - tokens <= 15 || round as f64 <= tokens as f64 * 1.25,
                "{tokens}"
            );
        }
        for exact in [16, 32, 80, 128, 256, 512, 1024, 4096] {
            assert_eq!(round_up(exact), exact);
        }
    }
}
