//! Position buckets against transformers', over many shapes.
//!
//! `tools/oracle/make_buckets.py` made the file and says what it holds.

#![allow(clippy::unwrap_used)]

use quintic::backend::Buckets;
use serde::Deserialize;

/// Bidirectional or not, buckets, distance of the last one, and where buckets begin.
#[derive(Deserialize)]
struct Shape(bool, usize, usize, Vec<(i64, usize)>);

#[test]
fn buckets_begin_where_those_of_transformers_do() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../testdata/expected/buckets.json"
    );
    let text = std::fs::read_to_string(path).unwrap();
    let entries: Vec<Shape> = serde_json::from_str(&text).unwrap();
    assert!(entries.len() > 500, "{}", entries.len());
    for Shape(bidirectional, n_buckets, max_distance, starts) in entries {
        let buckets = match bidirectional {
            true => Buckets::bidirectional(n_buckets, max_distance),
            false => Buckets::unidirectional(n_buckets, max_distance),
        };
        let reach = buckets.reach() as i64;
        let is_constant_from = |from: i64| {
            (from..max_distance as i64 + 4).all(|distance| {
                [distance, -distance]
                    .iter()
                    .all(|&at| buckets.of(at) == buckets.of(at.signum() * i64::from(u32::MAX)))
            })
        };
        assert!(reach >= 1 && is_constant_from(reach), "{reach}");
        assert!(reach == 1 || !is_constant_from(reach - 1), "{reach}");
        let mut expected = 0;
        for distance in 0..max_distance as i64 + 4 {
            if let Some((_, bucket)) = starts.iter().find(|(start, _)| *start == distance) {
                expected = *bucket;
            }
            let shape = format!("{bidirectional} {n_buckets}/{max_distance}, distance {distance}");
            assert_eq!(buckets.of(-distance), expected, "{shape}");
            if bidirectional && distance > 0 {
                assert_eq!(buckets.of(distance), expected + n_buckets / 2, "{shape}");
            }
        }
    }
}
