//! Which instructions this machine has, and which of them to use.

use std::fmt;

/// Name of the environment variable that forces an instruction set.
pub const ISA_VARIABLE: &str = "QUINTIC_ISA";

/// An instruction set that kernels are written for. Later ones include earlier ones, except
/// that `Portable` needs nothing at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Plain Rust, which the compiler vectorises for the target's baseline.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL.
    Avx512,
    /// `Avx512` and the bf16 dot product (AVX512_BF16).
    Avx512Bf16,
    /// `Avx512Bf16` and the tile unit (AMX-TILE, AMX-BF16, AMX-INT8), with the system's permission.
    Amx,
}

/// Why an instruction set cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IsaError {
    /// There is no instruction set of that name.
    Unknown(String),
    /// This machine, or its operating system, does not have it.
    Missing(Isa),
}

impl fmt::Display for IsaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |isas: &[Isa]| {
            isas.iter()
                .map(|isa| isa.name())
                .collect::<Vec<_>>()
                .join(", ")
        };
        match self {
            IsaError::Unknown(name) => write!(
                f,
                "there is no instruction set `{name}`, expected one of {}",
                names(&Isa::ALL)
            ),
            IsaError::Missing(isa) => write!(
                f,
                "this machine has no `{isa}`, it has {}",
                names(&Isa::available())
            ),
        }
    }
}

impl std::error::Error for IsaError {}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Isa {
    /// All of them, least first.
    pub const ALL: [Isa; 5] = [
        Isa::Portable,
        Isa::Avx2,
        Isa::Avx512,
        Isa::Avx512Bf16,
        Isa::Amx,
    ];

    /// The name that `QUINTIC_ISA` takes.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
            Isa::Amx => "amx",
        }
    }

    /// The instruction set of a name, whether or not this machine has it.
    ///
    /// # Errors
    ///
    /// [`IsaError::Unknown`].
    pub fn from_name(name: &str) -> Result<Isa, IsaError> {
        Isa::ALL
            .into_iter()
            .find(|isa| isa.name() == name)
            .ok_or_else(|| IsaError::Unknown(name.to_owned()))
    }

    /// Whether this machine and its operating system can run it. Asking for AMX asks Linux
    /// for the permission to use tiles, once and for the whole process.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            _ => crate::x86::detect::has(self),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// Every instruction set that this machine can run, least first.
    pub fn available() -> Vec<Isa> {
        Isa::ALL
            .into_iter()
            .filter(|isa| isa.is_available())
            .collect()
    }

    /// The fastest one that this machine can run: the last available one, unless its bf16 dot
    /// product is slower than products of f32.
    ///
    /// That is so on Intel's CPUs without AMX: `quintic bench --machine` finds 83 GFLOP/s of bf16 dot
    /// products on a thread of an Emerald Rapids, and 136 of f32. There a product of bf16 is faster,
    /// and closer to float32, when it is computed in f32 from weights in bf16. On AMD's Zen 4 the dot
    /// products are twice as fast as those of f32.
    pub fn detect() -> Isa {
        let best = Isa::available().last().copied().unwrap_or(Isa::Portable);
        match best {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 if crate::x86::detect::is_intel() => Isa::Avx512,
            best => best,
        }
    }

    /// The one that `QUINTIC_ISA` names, else [`Isa::detect`].
    ///
    /// # Errors
    ///
    /// [`IsaError`] if the variable holds no name, or one that this machine cannot run: a
    /// forced choice never falls back.
    pub fn choose() -> Result<Isa, IsaError> {
        match std::env::var(ISA_VARIABLE) {
            Ok(name) if !name.is_empty() => {
                let isa = Isa::from_name(&name)?;
                if isa.is_available() {
                    Ok(isa)
                } else {
                    Err(IsaError::Missing(isa))
                }
            }
            _ => Ok(Isa::detect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for isa in Isa::ALL {
            assert_eq!(Isa::from_name(isa.name()), Ok(isa));
        }
        let error = Isa::from_name("sse9").unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no instruction set `sse9`, expected one of portable, avx2, avx512, \
             avx512bf16, amx"
        );
    }

    #[test]
    fn what_is_available_includes_what_it_builds_on() {
        let available = Isa::available();
        assert_eq!(available, Isa::ALL[..available.len()]);
        let best = *available.last().unwrap();
        let detected = Isa::detect();
        assert!(detected == best || (best, detected) == (Isa::Avx512Bf16, Isa::Avx512));
    }

    /// A machine whose system lists a feature must run its kernels in the tests: a broken
    /// detection would make them pass by skipping.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[test]
    fn every_listed_feature_is_detected() {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let flags: Vec<&str> = cpuinfo
            .lines()
            .find(|line| line.starts_with("flags"))
            .unwrap()
            .split_whitespace()
            .collect();
        let listed = |wanted: &[&str]| wanted.iter().all(|flag| flags.contains(flag));
        let avx2 = listed(&["avx2", "fma", "f16c"]);
        let avx512 = avx2 && listed(&["avx512f", "avx512bw", "avx512dq", "avx512vl"]);
        let avx512bf16 = avx512 && listed(&["avx512_bf16"]);
        let amx = avx512bf16 && listed(&["amx_tile", "amx_bf16", "amx_int8"]);
        let expected = [true, avx2, avx512, avx512bf16, amx];
        assert_eq!(Isa::ALL.map(Isa::is_available), expected);
    }
}
