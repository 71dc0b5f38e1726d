//! Threads that share the tasks of one operation.
//!
//! An operation is a few dozen to a few thousand tasks that take microseconds each, and a pass
//! is a few hundred operations. So workers wait for the next one spinning for a short while,
//! and go to sleep only when nothing comes.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long an idle worker spins before it sleeps. Longer than the gaps between the operations
/// of a pass, short enough not to be seen between passes.
const SPIN: Duration = Duration::from_micros(100);

/// A fixed number of threads, the caller's included.
///
/// Every worker begins with a range of tasks of its own, the same one for equal numbers of
/// tasks: what it packed at load it also reads in every pass, from the memory that is nearest
/// to it. Who has finished takes tasks from the end of another's range.
///
/// Operations of several callers take turns, so that a process never computes on more threads
/// than it was given.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<State>,
    workers: Vec<JoinHandle<()>>,
    /// Held for the length of an operation.
    turn: Mutex<()>,
}

#[derive(Debug)]
struct State {
    /// Number of the current operation; a change wakes the workers.
    epoch: AtomicUsize,
    /// Workers (without the caller) that have not finished the current operation.
    busy: AtomicUsize,
    /// The operation. Written before `epoch`, read after it.
    job: Mutex<Option<Job>>,
    /// What is left of each worker's range: end in the upper half, start in the lower.
    ranges: Vec<Range>,
    stop: AtomicBool,
    asleep: Mutex<usize>,
    wake: Condvar,
    /// The first panic of a task.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// On a cache line of its own, since all workers write to theirs all the time.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Range(AtomicU64);

#[derive(Clone, Copy, Debug)]
struct Job {
    /// The caller's closure; it outlives the operation, since the caller waits for its end.
    run: *const (dyn Fn(usize, usize) + Sync),
}

// SAFETY: the closure behind the pointer is `Sync`, and alive while anybody may call it.
unsafe impl Send for Job {}

thread_local! {
    /// Whether this thread is inside an operation: a nested one must not wait for itself.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic in a task is caught and handed on; no lock is held while tasks run.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A pool of `threads` threads; the caller of [`Pool::run`] is one of them. At least one.
    ///
    /// # Errors
    ///
    /// If the system refuses a thread.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let threads = threads.max(1);
        let shared = Arc::new(State {
            epoch: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            job: Mutex::new(None),
            ranges: (0..threads).map(|_| Range::default()).collect(),
            stop: AtomicBool::new(false),
            asleep: Mutex::new(0),
            wake: Condvar::new(),
            panic: Mutex::new(None),
        });
        let mut pool = Pool {
            shared: Arc::clone(&shared),
            workers: Vec::with_capacity(threads - 1),
            turn: Mutex::new(()),
        };
        for worker in 1..threads {
            let shared = Arc::clone(&shared);
            let handle = std::thread::Builder::new()
                .name(format!("quintic-{worker}"))
                .spawn(move || shared.work(worker))?;
            pool.workers.push(handle);
        }
        Ok(pool)
    }

    /// As many threads as this process may use at once.
    pub fn default_threads() -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }

    /// Number of threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(index, worker)` for every `index < n_tasks`, and returns when all have
    /// returned. `worker` is below [`Pool::threads`], and no two calls with the same one
    /// overlap.
    ///
    /// # Panics
    ///
    /// With a task's panic, after the others have finished; if called from inside a task; if
    /// there are 2^32 tasks or more.
    pub fn run(&self, n_tasks: usize, task: impl Fn(usize, usize) + Sync) {
        assert!(n_tasks < u32::MAX as usize, "{n_tasks} tasks");
        if n_tasks == 0 {
            return;
        }
        assert!(
            !INSIDE.get(),
            "an operation was started from inside a task of another"
        );
        let _turn = lock(&self.turn);
        if self.workers.is_empty() || n_tasks == 1 {
            INSIDE.set(true);
            let outcome = catch_unwind(AssertUnwindSafe(|| (0..n_tasks).for_each(|i| task(i, 0))));
            INSIDE.set(false);
            return outcome.unwrap_or_else(|panic| resume_unwind(panic));
        }
        let (state, threads) = (&*self.shared, self.threads());
        for (worker, range) in state.ranges.iter().enumerate() {
            let at = |worker: usize| (worker * n_tasks / threads) as u64;
            range
                .0
                .store(at(worker + 1) << 32 | at(worker), Ordering::Relaxed);
        }
        let run: &(dyn Fn(usize, usize) + Sync) = &task;
        // SAFETY: only the lifetime changes. The reference is used until `busy` is zero, and
        // this function does not return before.
        let run: &'static (dyn Fn(usize, usize) + Sync) = unsafe { std::mem::transmute(run) };
        *lock(&state.job) = Some(Job { run });
        state.busy.store(self.workers.len(), Ordering::Relaxed);
        state.epoch.fetch_add(1, Ordering::SeqCst);
        {
            let asleep = lock(&state.asleep);
            if *asleep > 0 {
                state.wake.notify_all();
            }
        }
        state.take_part(run, 0);
        let mut spins = 0u32;
        while state.busy.load(Ordering::Acquire) != 0 {
            spins += 1;
            if spins < 10_000 {
                std::hint::spin_loop();
            } else {
                // Somebody else has the core that the last worker needs.
                std::thread::yield_now();
            }
        }
        *lock(&state.job) = None;
        let panic = lock(&state.panic).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        {
            let _asleep = lock(&self.shared.asleep);
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tasks.
            let _ = worker.join();
        }
    }
}

impl State {
    /// A worker's life.
    fn work(&self, worker: usize) {
        let mut done = 0;
        while self.wait(done) {
            done = self.epoch.load(Ordering::Acquire);
            let job = *lock(&self.job);
            if let Some(job) = job {
                // SAFETY: the caller of `run` waits until `busy` is zero.
                self.take_part(unsafe { &*job.run }, worker);
            }
            self.busy.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for an operation after number `done`; `false` if the pool ends.
    fn wait(&self, done: usize) -> bool {
        let news = || self.epoch.load(Ordering::SeqCst) != done || self.stop.load(Ordering::SeqCst);
        let started = Instant::now();
        while !news() {
            // Looks often: an operation of a few rows takes microseconds. The clock costs more.
            for _ in 0..64 {
                std::hint::spin_loop();
                if news() {
                    break;
                }
            }
            if started.elapsed() > SPIN {
                let mut asleep = lock(&self.asleep);
                *asleep += 1;
                while !news() {
                    asleep = self
                        .wake
                        .wait(asleep)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                *asleep -= 1;
            }
        }
        !self.stop.load(Ordering::SeqCst)
    }

    /// Runs tasks until none is left.
    fn take_part(&self, run: &(dyn Fn(usize, usize) + Sync), worker: usize) {
        INSIDE.set(true);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            while let Some(index) = self.next(worker) {
                run(index, worker);
            }
        }));
        INSIDE.set(false);
        if let Err(panic) = outcome {
            for range in &self.ranges {
                range.0.store(0, Ordering::Relaxed);
            }
            lock(&self.panic).get_or_insert(panic);
        }
    }

    /// The first task of the worker's own range, else the last of another's.
    fn next(&self, worker: usize) -> Option<usize> {
        let own =
            self.ranges[worker]
                .0
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |range| {
                    (range as u32 as u64).lt(&(range >> 32)).then(|| range + 1)
                });
        if let Ok(range) = own {
            return Some(range as u32 as usize);
        }
        let n = self.ranges.len();
        for offset in 1..n {
            let taken = self.ranges[(worker + offset) % n].0.fetch_update(
                Ordering::AcqRel,
                Ordering::Acquire,
                |range| {
                    (range as u32 as u64)
                        .lt(&(range >> 32))
                        .then(|| range - (1 << 32))
                },
            );
            if let Ok(range) = taken {
                return Some((range >> 32) as usize - 1);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_whatever_the_numbers() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads).unwrap();
            for n_tasks in [0, 1, 2, 3, 7, 64, 1000] {
                let counts: Vec<AtomicUsize> = (0..n_tasks).map(|_| AtomicUsize::new(0)).collect();
                let inside: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
                pool.run(n_tasks, |task, worker| {
                    assert_eq!(inside[worker].fetch_add(1, Ordering::SeqCst), 0, "overlap");
                    counts[task].fetch_add(1, Ordering::SeqCst);
                    inside[worker].fetch_sub(1, Ordering::SeqCst);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::SeqCst) == 1));
            }
        }
    }

    #[test]
    fn operations_follow_each_other_also_after_sleep() {
        let pool = Pool::new(3).unwrap();
        let total = AtomicUsize::new(0);
        for round in 0..300 {
            pool.run(5, |task, _| {
                total.fetch_add(task, Ordering::SeqCst);
            });
            if round % 100 == 0 {
                std::thread::sleep(5 * SPIN);
            }
        }
        assert_eq!(total.load(Ordering::SeqCst), 3000);
    }

    #[test]
    fn callers_take_turns() {
        let pool = Pool::new(2).unwrap();
        let running = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        pool.run(4, |_, _| {
                            assert!(running.fetch_add(1, Ordering::SeqCst) < 2);
                            running.fetch_sub(1, Ordering::SeqCst);
                        });
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let pool = Pool::new(3).unwrap();
        for n_tasks in [1, 100] {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                pool.run(n_tasks, |task, _| {
                    assert!(task != n_tasks / 2, "task {task}")
                });
            }));
            let message = *outcome.unwrap_err().downcast::<String>().unwrap();
            assert!(
                message.contains(&format!("task {}", n_tasks / 2)),
                "{message}"
            );
        }
        let count = AtomicUsize::new(0);
        pool.run(10, |_, _| {
            count.fetch_add(1, Ordering::SeqCst);
        });
        assert_eq!(count.load(Ordering::SeqCst), 10);
    }

    #[test]
    #[should_panic(expected = "from inside a task")]
    fn operations_do_not_nest() {
        let pool = Pool::new(2).unwrap();
        pool.run(2, |_, _| pool.run(2, |_, _| ()));
    }
}
