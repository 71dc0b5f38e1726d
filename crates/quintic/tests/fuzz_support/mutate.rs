//! Damage done to valid inputs, the same for the same numbers.

use serde_json::Value;

/// A small generator of repeatable numbers (xorshift).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed | 1)
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }
}

/// A few bytes changed, added or lost.
pub fn bytes(input: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..1 + random.below(4) {
        let at = random.below(bytes.len());
        match random.below(7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.below(256) as u8,
            2 if at < bytes.len() => bytes[at] = [0, 0xFF, 0x7F, 0x80][random.below(4)],
            3 if at < bytes.len() => drop(bytes.remove(at)),
            4 => {
                let end = (at + random.below(32)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, copy);
            }
            5 => bytes.truncate(at),
            _ => bytes.insert(at, random.below(256) as u8),
        }
    }
    bytes
}

/// What follows the first `prefix` bytes changed as JSON, if it is JSON: numbers, texts and
/// keys replaced, values left out, doubled, or moved to another place. Now and then, and if
/// it is not JSON, bytes are changed instead.
pub fn json_after(prefix: usize, input: &[u8], random: &mut Random) -> Vec<u8> {
    let prefix = prefix.min(input.len());
    if random.below(8) > 0
        && let Ok(mut value) = serde_json::from_slice::<Value>(&input[prefix..])
    {
        for _ in 0..1 + random.below(3) {
            json(&mut value, random);
        }
        let mut output = input[..prefix].to_vec();
        output.extend(value.to_string().as_bytes());
        return output;
    }
    bytes(input, random)
}

fn json(root: &mut Value, random: &mut Random) {
    let n = count(root);
    let donor = nth(root, &mut random.below(n)).cloned().unwrap_or_default();
    let Some(value) = nth(root, &mut random.below(n)) else {
        return;
    };
    match random.below(4) {
        0 => *value = donor,
        1 => *value = odd(random),
        _ => match value {
            Value::Array(list) if !list.is_empty() => {
                let at = random.below(list.len());
                match random.below(3) {
                    0 => drop(list.remove(at)),
                    1 => list.insert(at, donor),
                    _ => list.insert(at, list[at].clone()),
                }
            }
            Value::Object(map) if !map.is_empty() => {
                let at = random.below(map.len());
                let key = map.keys().nth(at).cloned().unwrap_or_default();
                match (random.below(3), donor) {
                    (0, Value::String(other)) => {
                        let moved = map.remove(&key).unwrap_or_default();
                        map.insert(other, moved);
                    }
                    (1, donor) => drop(map.insert(key, donor)),
                    _ => drop(map.remove(&key)),
                }
            }
            Value::String(text) => {
                let changed = bytes(text.as_bytes(), random);
                *text = String::from_utf8_lossy(&changed).into_owned();
            }
            Value::Number(number) => {
                let by = [1.0, -1.0, 0.5, 256.0][random.below(4)];
                let changed = number.as_f64().unwrap_or_default();
                *value = match (number.as_i64(), random.below(2)) {
                    (Some(whole), 0) => (whole.saturating_add(by as i64)).into(),
                    (Some(whole), _) => (whole.saturating_mul(2)).into(),
                    _ => (changed * by).into(),
                };
            }
            other => *other = odd(random),
        },
    }
}

/// A value at the edge of something.
fn odd(random: &mut Random) -> Value {
    match random.below(16) {
        0 => Value::Null,
        1 => true.into(),
        2 => false.into(),
        3 => 0.into(),
        4 => (-1).into(),
        5 => i64::from(u32::MAX).into(),
        6 => u64::MAX.into(),
        7 => i64::MIN.into(),
        8 => (1u64 << 28).into(),
        9 => 1e300.into(),
        10 => 0.1.into(),
        11 => "".into(),
        12 => "\u{2581}é\u{10ffff}".into(),
        13 => Value::Array(Vec::new()),
        14 => Value::Object(serde_json::Map::new()),
        _ => (random.below(300) as i64).into(),
    }
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

/// The value number `at`, counted depth first.
fn nth<'v>(value: &'v mut Value, at: &mut usize) -> Option<&'v mut Value> {
    if *at == 0 {
        return Some(value);
    }
    *at -= 1;
    match value {
        Value::Array(list) => list.iter_mut().find_map(|value| nth(value, at)),
        Value::Object(map) => map.values_mut().find_map(|value| nth(value, at)),
        _ => None,
    }
}
