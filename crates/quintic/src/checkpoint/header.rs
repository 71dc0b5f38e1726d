//! The JSON of a safetensors header, read without dropping anything silently.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{self, MapAccess, SeqAccess, Visitor};

/// Most extents of one tensor; real ones have at most five.
const MAX_RANK: usize = 32;

/// A header in the order of the file.
pub(super) struct Header {
    pub(super) entries: Vec<(String, RawEntry)>,
    pub(super) metadata: BTreeMap<String, String>,
}

/// One tensor as the header states it, not checked yet.
#[derive(Deserialize)]
pub(super) struct RawEntry {
    pub(super) dtype: String,
    #[serde(deserialize_with = "shape")]
    pub(super) shape: Vec<u64>,
    pub(super) data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object that maps names to tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut header = Header {
            entries: Vec::new(),
            metadata: BTreeMap::new(),
        };
        let mut seen = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(de::Error::custom(format!("name `{name}` appears twice")));
            }
            let within = |error| de::Error::custom(format!("`{name}`: {error}"));
            if name == "__metadata__" {
                // The reference reader takes `null` for an empty map.
                let metadata: Option<_> = map.next_value().map_err(within)?;
                header.metadata = metadata.unwrap_or_default();
            } else {
                let entry = map.next_value().map_err(within)?;
                header.entries.push((name, entry));
            }
        }
        Ok(header)
    }
}

/// Refuses a shape of millions of extents before it has taken memory.
fn shape<'de, D: de::Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    struct Shape;

    impl<'de> Visitor<'de> for Shape {
        type Value = Vec<u64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of extents")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u64>, A::Error> {
            let mut shape = Vec::new();
            while let Some(dim) = seq.next_element()? {
                if shape.len() == MAX_RANK {
                    return Err(de::Error::custom(format!(
                        "the shape has more than {MAX_RANK} extents"
                    )));
                }
                shape.push(dim);
            }
            Ok(shape)
        }
    }

    deserializer.deserialize_seq(Shape)
}
