//! Index files: which shard holds which tensor.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{self, MapAccess, Visitor};

use super::entry::list_names;
use super::file::{Format, WeightFile};
use crate::limits::read_file;
use crate::{Error, ErrorKind, Result};

/// Most bytes of an index. That of the largest T5 has under 100 kB.
const MAX_INDEX_BYTES: u64 = 100_000_000;

/// How many names an error lists.
const LISTED: usize = 5;

/// A parsed `model.safetensors.index.json` or `pytorch_model.bin.index.json`.
pub(super) struct ShardIndex {
    path: PathBuf,
    /// Shard file to the tensors it should hold.
    shards: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: WeightMap,
}

struct WeightMap(HashMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;

        impl<'de> Visitor<'de> for Names {
            type Value = HashMap<String, String>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object that maps tensor names to file names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut names = HashMap::new();
                while let Some((tensor, file)) = map.next_entry::<String, String>()? {
                    if names.contains_key(&tensor) {
                        return Err(de::Error::custom(format!(
                            "tensor `{tensor}` appears twice"
                        )));
                    }
                    names.insert(tensor, file);
                }
                Ok(names)
            }
        }

        deserializer.deserialize_map(Names).map(WeightMap)
    }
}

impl ShardIndex {
    /// Reads the index. Shards must lie beside it: a name with a folder in it is refused, so
    /// that a downloaded index cannot point at other files of the machine.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let text = read_bounded(path, MAX_INDEX_BYTES)?;
        Self::parse(path, &text).map_err(|error| error.at(path.display()))
    }

    pub(super) fn parse(path: &Path, text: &str) -> Result<Self> {
        let raw: RawIndex = serde_json::from_str(text).map_err(|error| {
            Error::checkpoint(format!("the index cannot be read: {error}")).source_error(error)
        })?;
        let mut shards = BTreeMap::<_, Vec<_>>::new();
        for (tensor, file) in raw.weight_map.0 {
            if !is_plain_name(&file) {
                return Err(Error::checkpoint(format!(
                    "shard `{file}` is not a plain file name, expected a file beside the index"
                ))
                .at(format!("tensor `{tensor}`")));
            }
            shards.entry(file).or_default().push(tensor);
        }
        if shards.is_empty() {
            return Err(Error::checkpoint(
                "`weight_map` is empty, expected at least one tensor",
            ));
        }
        Ok(ShardIndex {
            path: path.to_path_buf(),
            shards,
        })
    }

    /// The shards' file names, sorted.
    pub(super) fn shard_names(&self) -> impl Iterator<Item = &str> {
        self.shards.keys().map(String::as_str)
    }

    /// Opens every shard and checks that index and shards agree in both directions.
    pub(super) fn open_shards(&self, format: Format) -> Result<Vec<WeightFile>> {
        self.open_shards_inner(format)
            .map_err(|error| error.at(self.path.display()))
    }

    fn open_shards_inner(&self, format: Format) -> Result<Vec<WeightFile>> {
        let folder = self.path.parent().unwrap_or(Path::new(""));
        let missing: Vec<_> = self
            .shard_names()
            .filter(|name| !folder.join(name).is_file())
            .collect();
        if !missing.is_empty() {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!(
                    "{} of {} shards are not beside the index: {}",
                    missing.len(),
                    self.shards.len(),
                    list_names(missing, LISTED)
                ),
            )
            .hint("is the download complete?"));
        }
        self.check_shards(format, |name| WeightFile::open(&folder.join(name)))
    }

    /// Opens every shard by `open` and checks that it holds what the index says.
    pub(super) fn check_shards(
        &self,
        format: Format,
        mut open: impl FnMut(&str) -> Result<WeightFile>,
    ) -> Result<Vec<WeightFile>> {
        let mut files = Vec::with_capacity(self.shards.len());
        for (name, tensors) in &self.shards {
            let file = open(name)?;
            if file.format() != format {
                return Err(Error::checkpoint(format!(
                    "shard `{name}` is a {} file, expected {format} files from the name of the index",
                    file.format()
                )));
            }
            check_shard(name, &file, tensors)?;
            files.push(file);
        }
        Ok(files)
    }
}

fn check_shard(name: &str, file: &WeightFile, listed: &[String]) -> Result<()> {
    let mut absent: Vec<_> = listed
        .iter()
        .filter(|tensor| file.entry(tensor).is_none())
        .collect();
    if !absent.is_empty() {
        absent.sort();
        return Err(Error::checkpoint(format!(
            "shard `{name}` does not hold {} that the index places there",
            list_names(absent, LISTED)
        )));
    }
    if file.entries().len() > listed.len() {
        let listed: std::collections::HashSet<_> = listed.iter().collect();
        let extra = file
            .entries()
            .iter()
            .map(|entry| &entry.name)
            .filter(|tensor| !listed.contains(tensor));
        return Err(Error::checkpoint(format!(
            "shard `{name}` holds {} that the index does not place there",
            list_names(extra, LISTED)
        ))
        .hint("are the index and the shards of the same model?"));
    }
    Ok(())
}

/// Whether `name` is one component that stays in its folder, on every system.
pub(super) fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', ':', '\0'])
}

/// A text file of at most `limit` bytes.
pub(super) fn read_bounded(path: &Path, limit: u64) -> Result<String> {
    let bytes = read_file(path, limit, ErrorKind::Checkpoint)?;
    String::from_utf8(bytes).map_err(|error| {
        Error::checkpoint("the file is not UTF-8")
            .source_error(error)
            .at(path.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ShardIndex> {
        ShardIndex::parse(Path::new("x.index.json"), text)
    }

    #[test]
    fn groups_tensors_by_shard() {
        let index = parse(
            r#"{"metadata": {"total_size": 3}, "weight_map": {"a": "2", "b": "1", "c": "2"}}"#,
        )
        .unwrap();
        assert_eq!(index.shard_names().collect::<Vec<_>>(), ["1", "2"]);
    }

    #[test]
    fn refuses_names_that_leave_the_folder() {
        for name in [
            "../x",
            "/etc/passwd",
            "a/b",
            "",
            "..",
            r"C:\\x",
            r"\\\\host\\x",
            "a\\u0000b",
        ] {
            let text = format!(r#"{{"weight_map": {{"w": "{name}"}}}}"#);
            let error = parse(&text).err().unwrap().to_string();
            assert!(
                error.contains("is not a plain file name"),
                "{name}: {error}"
            );
        }
    }

    #[test]
    fn refuses_damaged_indexes() {
        for (text, expected) in [
            ("{", "the index cannot be read"),
            ("[]", "the index cannot be read"),
            ("{}", "missing field `weight_map`"),
            (r#"{"weight_map": {"a": 1}}"#, "expected a string"),
            (r#"{"weight_map": {}}"#, "`weight_map` is empty"),
            (
                r#"{"weight_map": {"a": "x", "a": "y"}}"#,
                "tensor `a` appears twice",
            ),
        ] {
            let error = parse(text).err().unwrap().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
