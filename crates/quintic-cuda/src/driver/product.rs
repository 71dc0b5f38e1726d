//! Products by cuBLASLt, each shape the way that was fastest when it was first seen.
//!
//! cuBLASLt counts columns first: what is `[tokens, columns]` here is a matrix of `columns` rows
//! and `tokens` columns there, and `out = x w^T` is `out' = w x'` with `w` transposed.
//!
//! With the same way of computing, a product has the same bits each time. Which way is the
//! fastest is a measurement, so bits may differ from one process to the next; without tuning
//! (`QUINTIC_CUDA_TUNE=0`) they do not.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cudarc::cublaslt::sys as lt;
use cudarc::driver::result;

use super::Stream;
use super::status::Done;
use crate::device::{Address, Element, Product};
use crate::{Error, Result};

/// Set to 0, the first way that cuBLASLt proposes is taken for every product.
const TUNE_VARIABLE: &str = "QUINTIC_CUDA_TUNE";

/// Ways that are asked for.
const CANDIDATES: usize = 48;
/// How often each is timed, after it has run once.
const ROUNDS: usize = 3;
/// Trying ends after so long, with the best so far.
const BUDGET: Duration = Duration::from_millis(400);
/// Written between two runs, so that weights come from memory as they do in a pass, and not from
/// the cache that the run before has filled.
const FLUSH_BYTES: usize = 96 << 20;

/// `CUBLAS_OP_T` of the attributes that say how a factor is read.
const TRANSPOSED: i32 = 1;

/// What has to be the same for a way of computing to be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    tokens: usize,
    columns: usize,
    depth: usize,
    factors: Element,
    result: Element,
    accumulate: bool,
    /// The largest power of two up to 256 that divides all addresses.
    alignment: u32,
}

impl Key {
    fn of(product: &Product) -> Self {
        let addresses = product.x.0 | product.w.0 | product.out.0;
        Key {
            tokens: product.tokens,
            columns: product.columns,
            depth: product.depth,
            factors: product.factors,
            result: product.result,
            accumulate: product.accumulate,
            alignment: 1 << addresses.trailing_zeros().min(8),
        }
    }
}

/// A product that is ready to be computed.
#[derive(Debug)]
struct Plan {
    operation: Operation,
    algorithm: lt::cublasLtMatmulAlgo_t,
    tuned: bool,
}

/// cuBLASLt's descriptions of a product.
#[derive(Debug)]
struct Operation {
    matmul: lt::cublasLtMatmulDesc_t,
    w: lt::cublasLtMatrixLayout_t,
    x: lt::cublasLtMatrixLayout_t,
    out: lt::cublasLtMatrixLayout_t,
}

#[derive(Debug)]
pub(super) struct Products {
    handle: lt::cublasLtHandle_t,
    workspace: Address,
    workspace_bytes: usize,
    plans: Mutex<HashMap<Key, Plan>>,
    is_recording: AtomicBool,
    tunes: bool,
    stream: Arc<Stream>,
}

// SAFETY: a handle may be used from every thread; descriptions are used under the lock of `plans`.
unsafe impl Send for Products {}
// SAFETY: as above.
unsafe impl Sync for Products {}

fn status(status: lt::cublasStatus_t, doing: impl FnOnce() -> String) -> Result<()> {
    match status {
        lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
        other => Err(Error::Failed(format!("{}: {other:?}", doing()))),
    }
}

fn data_type(element: Element) -> lt::cudaDataType_t {
    match element {
        Element::F32 => lt::cudaDataType_t::CUDA_R_32F,
        Element::Bf16 => lt::cudaDataType_t::CUDA_R_16BF,
        Element::F16 => lt::cudaDataType_t::CUDA_R_16F,
    }
}

fn layout(element: Element, rows: usize, columns: usize) -> Result<lt::cublasLtMatrixLayout_t> {
    let mut layout = std::ptr::null_mut();
    status(
        // SAFETY: writes one handle.
        unsafe {
            lt::cublasLtMatrixLayoutCreate(
                &raw mut layout,
                data_type(element),
                rows as u64,
                columns as u64,
                rows as i64,
            )
        },
        || "describing a matrix".to_owned(),
    )?;
    Ok(layout)
}

impl Operation {
    fn new(key: &Key) -> Result<Self> {
        // Filled in from here on, so that an early end frees what there is.
        let mut operation = Operation {
            matmul: std::ptr::null_mut(),
            w: std::ptr::null_mut(),
            x: std::ptr::null_mut(),
            out: std::ptr::null_mut(),
        };
        status(
            // SAFETY: writes one handle.
            unsafe {
                lt::cublasLtMatmulDescCreate(
                    &raw mut operation.matmul,
                    lt::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                    lt::cudaDataType_t::CUDA_R_32F,
                )
            },
            || "describing a product".to_owned(),
        )?;
        let transposed: i32 = TRANSPOSED;
        status(
            // SAFETY: the attribute is one such value, which is read at once.
            unsafe {
                lt::cublasLtMatmulDescSetAttribute(
                    operation.matmul,
                    lt::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                    (&raw const transposed).cast(),
                    size_of_val(&transposed),
                )
            },
            || "describing a product".to_owned(),
        )?;
        operation.w = layout(key.factors, key.depth, key.columns)?;
        operation.x = layout(key.factors, key.depth, key.tokens)?;
        operation.out = layout(key.result, key.columns, key.tokens)?;
        Ok(operation)
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: created by `new` or null, and in nobody else's hands.
        unsafe {
            for layout in [self.w, self.x, self.out] {
                if !layout.is_null() {
                    lt::cublasLtMatrixLayoutDestroy(layout);
                }
            }
            if !self.matmul.is_null() {
                lt::cublasLtMatmulDescDestroy(self.matmul);
            }
        }
    }
}

/// Preferences of a search.
struct Preference(lt::cublasLtMatmulPreference_t);

impl Preference {
    fn new(workspace_bytes: usize, alignment: u32) -> Result<Self> {
        let mut preference = Preference(std::ptr::null_mut());
        status(
            // SAFETY: writes one handle.
            unsafe { lt::cublasLtMatmulPreferenceCreate(&raw mut preference.0) },
            || "searching for a product".to_owned(),
        )?;
        use lt::cublasLtMatmulPreferenceAttributes_t as A;
        let set = |attribute, value: *const c_void, bytes| {
            status(
                // SAFETY: the value has that many bytes, which are read at once.
                unsafe {
                    lt::cublasLtMatmulPreferenceSetAttribute(preference.0, attribute, value, bytes)
                },
                || "searching for a product".to_owned(),
            )
        };
        set(
            A::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            (&raw const workspace_bytes).cast(),
            size_of::<usize>(),
        )?;
        for attribute in [
            A::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            A::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            A::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            A::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            set(attribute, (&raw const alignment).cast(), size_of::<u32>())?;
        }
        Ok(preference)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: created by `new` or null.
        unsafe {
            if !self.0.is_null() {
                lt::cublasLtMatmulPreferenceDestroy(self.0);
            }
        }
    }
}

/// Device memory while a product is tried out.
struct Scratch(Address);

impl Scratch {
    fn new(bytes: usize) -> Result<Self> {
        // SAFETY: plain memory of the current context.
        unsafe { result::malloc_sync(bytes) }
            .done("allocating memory to try products in")
            .map(|address| Scratch(Address(address)))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`; whoever used it has waited.
        let _ = unsafe { result::free_sync(self.0.0) };
    }
}

impl Products {
    pub(super) fn new(stream: &Arc<Stream>, capability: (u32, u32)) -> Result<Self> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one handle; the context is current.
        status(unsafe { lt::cublasLtCreate(&raw mut handle) }, || {
            "starting cuBLASLt".to_owned()
        })?;
        // What NVIDIA recommends from Hopper on, and before.
        let workspace_bytes = if capability >= (9, 0) {
            32 << 20
        } else {
            8 << 20
        };
        // SAFETY: plain memory of the current context.
        let workspace =
            unsafe { result::malloc_sync(workspace_bytes) }.done("allocating a workspace");
        let workspace = match workspace {
            Ok(address) => Address(address),
            Err(error) => {
                // SAFETY: created above.
                unsafe { lt::cublasLtDestroy(handle) };
                return Err(error);
            }
        };
        Ok(Products {
            handle,
            workspace,
            workspace_bytes,
            plans: Mutex::new(HashMap::new()),
            is_recording: AtomicBool::new(false),
            tunes: std::env::var_os(TUNE_VARIABLE).is_none_or(|value| value != "0"),
            stream: Arc::clone(stream),
        })
    }

    pub(super) fn is_recording(&self) -> bool {
        self.is_recording.load(Ordering::Relaxed)
    }

    pub(super) fn set_recording(&self, recording: bool) {
        self.is_recording.store(recording, Ordering::Relaxed);
    }

    /// # Safety
    ///
    /// As [`Device::multiply`](crate::device::Device::multiply).
    pub(super) unsafe fn multiply(&self, product: &Product) -> Result<()> {
        check(product)?;
        let key = Key::of(product);
        let may_tune = product.tune && self.tunes && !self.is_recording();
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if plans.get(&key).is_none_or(|plan| may_tune && !plan.tuned) {
            // SAFETY: the caller's.
            let plan = unsafe { self.plan(&key, product, may_tune)? };
            plans.insert(key, plan);
        }
        match plans.get(&key) {
            // SAFETY: the caller's.
            Some(plan) => unsafe {
                self.run(&plan.operation, &plan.algorithm, product, product.out)
            },
            None => Err(Error::Failed("a product without a plan".to_owned())),
        }
    }

    /// # Safety
    ///
    /// As [`Products::multiply`]; `out` is where the result goes.
    unsafe fn run(
        &self,
        operation: &Operation,
        algorithm: &lt::cublasLtMatmulAlgo_t,
        product: &Product,
        out: Address,
    ) -> Result<()> {
        let beta = if product.accumulate { 1.0f32 } else { 0.0 };
        status(
            // SAFETY: descriptions are whole, both factors are read at once from host memory, and the
            // caller vouches for the matrices.
            unsafe {
                lt::cublasLtMatmul(
                    self.handle,
                    operation.matmul,
                    (&raw const product.alpha).cast(),
                    product.w.0 as *const c_void,
                    operation.w,
                    product.x.0 as *const c_void,
                    operation.x,
                    (&raw const beta).cast(),
                    out.0 as *const c_void,
                    operation.out,
                    out.0 as *mut c_void,
                    operation.out,
                    algorithm,
                    self.workspace.0 as *mut c_void,
                    self.workspace_bytes,
                    self.stream.handle.cast(),
                )
            },
            || format!("computing {product:?}"),
        )
    }

    /// # Safety
    ///
    /// As [`Products::multiply`].
    unsafe fn plan(&self, key: &Key, product: &Product, may_tune: bool) -> Result<Plan> {
        let operation = Operation::new(key)?;
        let candidates = self.candidates(key, &operation)?;
        let Some(&first) = candidates.first() else {
            return Err(Error::Failed(format!(
                "cuBLASLt does not compute {product:?}"
            )));
        };
        let algorithm = match may_tune && candidates.len() > 1 {
            // SAFETY: the caller's.
            true => unsafe { self.fastest(&operation, product, &candidates) }?.unwrap_or(first),
            false => first,
        };
        Ok(Plan {
            operation,
            algorithm,
            tuned: may_tune,
        })
    }

    /// Ways to compute it, the most promising first.
    fn candidates(
        &self,
        key: &Key,
        operation: &Operation,
    ) -> Result<Vec<lt::cublasLtMatmulAlgo_t>> {
        let preference = Preference::new(self.workspace_bytes, key.alignment)?;
        let mut found: Vec<lt::cublasLtMatmulHeuristicResult_t> = Vec::with_capacity(CANDIDATES);
        let mut n_found = 0;
        // SAFETY: there is room for that many results.
        let answer = unsafe {
            lt::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                operation.matmul,
                operation.w,
                operation.x,
                operation.out,
                operation.out,
                preference.0,
                CANDIDATES as i32,
                found.as_mut_ptr(),
                &raw mut n_found,
            )
        };
        status(answer, || format!("searching for ways to compute {key:?}"))?;
        // SAFETY: so many results were written.
        unsafe { found.set_len((n_found.max(0) as usize).min(CANDIDATES)) };
        Ok(found
            .into_iter()
            .filter(|result| {
                result.state == lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS
                    && result.workspaceSize <= self.workspace_bytes
            })
            .map(|result| result.algo)
            .collect())
    }

    /// Tries them out in turns, on the real factors and a result of its own: a product that is
    /// added must be added once.
    ///
    /// # Safety
    ///
    /// As [`Products::multiply`].
    unsafe fn fastest(
        &self,
        operation: &Operation,
        product: &Product,
        candidates: &[lt::cublasLtMatmulAlgo_t],
    ) -> Result<Option<lt::cublasLtMatmulAlgo_t>> {
        let bytes = product.tokens * product.columns * product.result.bytes();
        let (Ok(out), Ok(flush)) = (Scratch::new(bytes), Scratch::new(FLUSH_BYTES)) else {
            // Without room to try there is still a way to compute.
            return Ok(None);
        };
        // SAFETY: `out` has so many bytes.
        unsafe { result::memset_d8_async(out.0.0, 0, bytes, self.stream.handle) }
            .done("clearing memory")?;
        self.stream.wait()?;
        let time = |candidate: usize| -> Result<Option<Duration>> {
            // SAFETY: `flush` has so many bytes.
            unsafe { result::memset_d8_async(flush.0.0, 0, FLUSH_BYTES, self.stream.handle) }
                .done("clearing memory")?;
            self.stream.wait()?;
            let start = Instant::now();
            // SAFETY: the caller's; `out` has room for the result.
            let ran = unsafe { self.run(operation, &candidates[candidate], product, out.0) };
            self.stream.wait()?;
            // A way that is refused is none.
            Ok(ran.ok().map(|()| start.elapsed()))
        };
        let best = fastest_of(candidates.len(), ROUNDS, BUDGET, time)?;
        self.stream.wait()?;
        Ok(best.map(|best| candidates[best]))
    }
}

/// The candidate whose best time is the shortest. Each runs once without counting, then in turns.
fn fastest_of(
    n: usize,
    rounds: usize,
    budget: Duration,
    mut time: impl FnMut(usize) -> Result<Option<Duration>>,
) -> Result<Option<usize>> {
    let start = Instant::now();
    let mut best: Vec<Option<Duration>> = vec![None; n];
    let mut usable = vec![true; n];
    for round in 0..=rounds {
        for candidate in 0..n {
            if !usable[candidate] || start.elapsed() > budget {
                continue;
            }
            match time(candidate)? {
                None => usable[candidate] = false,
                Some(_) if round == 0 => {}
                Some(took) => {
                    best[candidate] = Some(best[candidate].map_or(took, |best| best.min(took)));
                }
            }
        }
    }
    let timed = best
        .iter()
        .enumerate()
        .filter(|(candidate, _)| usable[*candidate]);
    Ok(timed
        .filter_map(|(candidate, took)| took.map(|took| (took, candidate)))
        .min()
        .map(|(_, candidate)| candidate))
}

fn check(product: &Product) -> Result<()> {
    let adds_to_f32 = !product.accumulate || product.result == Element::F32;
    let known = product.result == Element::F32 || product.result == product.factors;
    match adds_to_f32 && known {
        true => Ok(()),
        false => Err(Error::Failed(format!(
            "there is no such product: {product:?}"
        ))),
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        self.plans
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        if self.stream.context.bind().is_ok() && self.stream.wait().is_ok() {
            // SAFETY: created by `new`; nothing runs any more. Failures leave nothing to be done.
            unsafe {
                let _ = result::free_sync(self.workspace.0);
                lt::cublasLtDestroy(self.handle);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_usable_candidate_wins_by_its_best_time() {
        let times = [9, 4, 1, 7];
        let mut asked = vec![0; 4];
        let best = fastest_of(4, 3, Duration::from_secs(9), |candidate| {
            asked[candidate] += 1;
            // The third is refused when it is run again; the second is slow at first.
            Ok(match (candidate, asked[candidate]) {
                (2, 2..) => None,
                (1, 1..=2) => Some(Duration::from_millis(50)),
                _ => Some(Duration::from_millis(times[candidate])),
            })
        });
        assert_eq!(best, Ok(Some(1)));
        assert_eq!(asked, [4, 4, 2, 4]);
        let none = fastest_of(2, 3, Duration::from_secs(9), |_| Ok(None));
        assert_eq!(none, Ok(None));
    }

    #[test]
    fn keys_tell_alignments_apart() {
        let product = Product {
            tokens: 1,
            columns: 8,
            depth: 8,
            x: Address(512),
            w: Address(1024),
            out: Address(256),
            factors: Element::Bf16,
            result: Element::F32,
            alpha: 1.0,
            accumulate: true,
            tune: true,
        };
        assert_eq!(Key::of(&product).alignment, 256);
        let shifted = Product {
            w: Address(1040),
            ..product
        };
        assert_eq!(Key::of(&shifted).alignment, 16);
        // A factor is no part of how it is computed.
        let scaled = Product {
            alpha: 2.0,
            ..product
        };
        assert_eq!(Key::of(&scaled), Key::of(&product));
        assert!(check(&product).is_ok());
        assert!(
            check(&Product {
                result: Element::Bf16,
                ..product
            })
            .is_err()
        );
    }
}
