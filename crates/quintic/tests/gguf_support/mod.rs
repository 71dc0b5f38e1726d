//! GGUF files made by the tests.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses its own part"
)]

/// A value of the metadata.
#[derive(Clone)]
pub enum Meta {
    U32(u32),
    U64(u64),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Floats(Vec<f32>),
    Ints(Vec<i32>),
    Bytes(Vec<u8>),
}

/// A tensor; extents outermost first.
#[derive(Clone)]
pub struct Stored {
    pub name: String,
    pub shape: Vec<u64>,
    pub kind: u32,
    pub bytes: Vec<u8>,
}

/// A file in the making.
#[derive(Clone)]
pub struct Gguf {
    pub version: u32,
    pub alignment: usize,
    pub meta: Vec<(String, Meta)>,
    pub tensors: Vec<Stored>,
}

impl Default for Gguf {
    fn default() -> Self {
        Gguf {
            version: 3,
            alignment: 32,
            meta: Vec::new(),
            tensors: Vec::new(),
        }
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn list(out: &mut Vec<u8>, kind: u32, len: usize) {
    out.extend(9u32.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend((len as u64).to_le_bytes());
}

impl Gguf {
    /// With the architecture and, if it is not the usual one, the alignment.
    pub fn new(architecture: &str) -> Self {
        Gguf::default().with("general.architecture", Meta::Text(architecture.to_owned()))
    }

    pub fn with(mut self, key: &str, value: Meta) -> Self {
        self.meta.retain(|(known, _)| known != key);
        self.meta.push((key.to_owned(), value));
        self
    }

    pub fn without(mut self, key: &str) -> Self {
        self.meta.retain(|(known, _)| known != key);
        self
    }

    pub fn tensor(mut self, name: &str, kind: u32, shape: &[usize], bytes: Vec<u8>) -> Self {
        self.tensors.push(Stored {
            name: name.to_owned(),
            shape: shape.iter().map(|&n| n as u64).collect(),
            kind,
            bytes,
        });
        self
    }

    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        let offsets: Vec<u64> = self
            .tensors
            .iter()
            .scan(0, |next: &mut usize, tensor| {
                let at = *next;
                *next = (at + tensor.bytes.len()).next_multiple_of(self.alignment);
                Some(at as u64)
            })
            .collect();
        let mut out = self.header(&offsets);
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(&tensor.bytes);
        }
        out
    }

    /// All but the values, with any offsets.
    pub fn header(&self, offsets: &[u64]) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.meta.len() as u64).to_le_bytes());
        for (key, value) in &self.meta {
            text(&mut out, key);
            match value {
                Meta::U32(n) => {
                    out.extend(4u32.to_le_bytes());
                    out.extend(n.to_le_bytes());
                }
                Meta::U64(n) => {
                    out.extend(10u32.to_le_bytes());
                    out.extend(n.to_le_bytes());
                }
                Meta::F32(x) => {
                    out.extend(6u32.to_le_bytes());
                    out.extend(x.to_le_bytes());
                }
                Meta::Bool(flag) => {
                    out.extend(7u32.to_le_bytes());
                    out.push(u8::from(*flag));
                }
                Meta::Text(value) => {
                    out.extend(8u32.to_le_bytes());
                    text(&mut out, value);
                }
                Meta::Texts(values) => {
                    list(&mut out, 8, values.len());
                    values.iter().for_each(|value| text(&mut out, value));
                }
                Meta::Floats(values) => {
                    list(&mut out, 6, values.len());
                    out.extend(values.iter().flat_map(|x| x.to_le_bytes()));
                }
                Meta::Ints(values) => {
                    list(&mut out, 5, values.len());
                    out.extend(values.iter().flat_map(|n| n.to_le_bytes()));
                }
                Meta::Bytes(values) => {
                    list(&mut out, 0, values.len());
                    out.extend(values);
                }
            }
        }
        for (tensor, offset) in self.tensors.iter().zip(offsets) {
            text(&mut out, &tensor.name);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            for dim in tensor.shape.iter().rev() {
                out.extend(dim.to_le_bytes());
            }
            out.extend(tensor.kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out
    }
}
