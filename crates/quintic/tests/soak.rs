//! Requests of every kind that come and go together, from several threads, for as long as
//! `QUINTIC_SOAK_MINUTES` says (a few rounds without it): nobody gets another's tokens, nothing
//! panics, and memory stays.
//!
//! A round draws its requests at random: sources of all lengths, greedy, drawn, with beams and with
//! rules, with guesses, some of them cancelled in the middle; and generates them together. Then each is
//! generated alone and without guesses, by the same model: what it gets has to be the same, bit for bit. `QUINTIC_SOAK_MODEL` names
//! another model than the tiny ones of `testdata/`.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use quintic::checkpoint::{Checkpoint, OpenOptions};
use quintic::generate::{
    Event, Finish, GenerateOptions, GenerationConfig, Request, Sequence, generate,
};
use quintic::{BackendKind, Compute, ComputeType, Seq2Seq, Sources};
use serde_json::{Value, json};

const THREADS: usize = 3;
const ROUNDS: usize = 4;
const LOOKUP: &str = "prompt_lookup_num_tokens";

/// SplitMix64: rounds are the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn is(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

fn options(random: &mut Random, vocab: usize) -> Value {
    let mut options =
        json!({ "max_new_tokens": 1 + random.below(40), "decoder_start_token_id": 0 });
    let mut set = |name: &str, value: Value| options[name] = value;
    match random.below(4) {
        0 => {}
        1 => {
            set("do_sample", json!(true));
            set("seed", json!(random.below(1000)));
            set("temperature", json!(0.5 + random.below(10) as f64 / 8.0));
            set("top_k", json!(random.below(20)));
            set("top_p", json!(0.5 + random.below(6) as f64 / 10.0));
            set("num_return_sequences", json!(1 + random.below(3)));
        }
        2 => {
            let beams = 2 + random.below(5);
            set("num_beams", json!(beams));
            set("num_return_sequences", json!(1 + random.below(beams)));
            set("length_penalty", json!(random.below(5) as f64 / 2.0 - 0.5));
            let stopping = [json!(true), json!(false), json!("never")];
            set("early_stopping", stopping[random.below(3)].clone());
        }
        _ => {
            set("num_beams", json!(2 + random.below(3)));
            set("do_sample", json!(true));
            set("seed", json!(random.below(1000)));
        }
    }
    if random.is(30) {
        set(
            "repetition_penalty",
            json!(1.0 + random.below(5) as f64 / 10.0),
        );
    }
    if random.is(20) {
        set("no_repeat_ngram_size", json!(2 + random.below(3)));
    }
    if random.is(30) {
        set("min_new_tokens", json!(random.below(6)));
    }
    if options.get("num_beams").is_none() && random.is(50) {
        let set = options.as_object_mut().expect("an object");
        set.insert(LOOKUP.into(), json!(1 + random.below(15)));
        set.insert("max_matching_ngram_size".into(), json!(1 + random.below(3)));
    }
    let mut set = |name: &str, value: Value| options[name] = value;
    if random.is(40) {
        // Otherwise a random model hardly ever ends.
        let ends: Vec<usize> = (0..4).map(|_| random.below(vocab)).collect();
        set("eos_token_id", json!(ends));
    }
    options
}

#[derive(Clone)]
struct Drawn {
    config: GenerationConfig,
    prefix: Vec<u32>,
    /// Of its first sequence: after how many tokens it is cancelled.
    cancelled_after: Option<usize>,
}

fn draw(random: &mut Random, model: &Seq2Seq) -> Drawn {
    let vocab = model.config().vocab_size;
    let mut config = GenerationConfig::of_model(model.config(), None).unwrap();
    let options = options(random, vocab);
    config.choose(options.as_object().unwrap()).unwrap();
    let more = if random.is(20) { random.below(4) } else { 0 };
    let mut prefix = vec![0];
    prefix.extend((0..more).map(|_| random.below(vocab) as u32));
    Drawn {
        cancelled_after: random.is(25).then(|| 1 + random.below(12)),
        config,
        prefix,
    }
}

fn run(
    model: &Seq2Seq,
    sources: &[Vec<u32>],
    drawn: &[(usize, &Drawn)],
    max_rows: usize,
) -> Vec<Vec<Sequence>> {
    let requests: Vec<Request<'_>> = drawn
        .iter()
        .map(|&(source, drawn)| Request {
            source,
            prefix: &drawn.prefix,
            config: &drawn.config,
            stop: None,
        })
        .collect();
    let mut heard = HashMap::new();
    let mut listener = |event: Event| {
        if event.sequence > 0 {
            return ControlFlow::Continue(());
        }
        let n: &mut usize = heard.entry(event.request).or_default();
        *n += 1;
        match drawn[event.request].1.cancelled_after {
            Some(after) if *n >= after => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    };
    let options = GenerateOptions {
        max_rows,
        ..GenerateOptions::default()
    };
    let mut rows = model.rows(Sources::Ids(sources), None).unwrap();
    generate(rows.as_mut(), &requests, &options, Some(&mut listener)).unwrap()
}

/// Cuts both to as many tokens as the shorter one has.
fn shorten_to_common(a: &mut Sequence, b: &mut Sequence) {
    if a.tokens.len() == b.tokens.len() {
        return;
    }
    let n = a.tokens.len().min(b.tokens.len());
    for sequence in [a, b] {
        sequence.tokens.truncate(n);
        sequence.log_probs.truncate(n - sequence.n_prefix);
        sequence.score = 0.0;
        sequence.finish = Finish::Cancelled;
    }
}

/// One round; the number of sequences that were cancelled, and of all.
fn round(model: &Seq2Seq, random: &mut Random) -> (usize, usize) {
    let vocab = model.config().vocab_size;
    let longest = if random.is(10) { 300 } else { 40 };
    let sources: Vec<Vec<u32>> = (0..1 + random.below(12))
        .map(|_| {
            let length = 1 + random.below(longest);
            (0..length).map(|_| random.below(vocab) as u32).collect()
        })
        .collect();
    let drawn: Vec<Drawn> = sources.iter().map(|_| draw(random, model)).collect();
    let together: Vec<(usize, &Drawn)> = drawn.iter().enumerate().collect();
    let found = run(model, &sources, &together, 1 + random.below(40));
    assert_eq!(found.len(), drawn.len());
    for (&(source, drawn), found) in together.iter().zip(&found) {
        let mut plain = drawn.clone();
        plain.config.prompt_lookup_num_tokens = 0;
        let mut alone = run(model, &sources, &[(source, &plain)], 1);
        let mut found = found.clone();
        let was_cancelled = found.iter().any(|s| s.finish == Finish::Cancelled);
        if was_cancelled && drawn.config.prompt_lookup_num_tokens > 0 && found.len() > 1 {
            // A guess that was right brings one sequence several tokens before the next gets its own, so
            // that the end catches sequences at other places; up to there they have to agree.
            for (found, alone) in found.iter_mut().zip(&mut alone[0]) {
                shorten_to_common(found, alone);
            }
        }
        assert_eq!(found, alone[0], "{:?}", drawn.config);
    }
    let all = found.iter().flatten();
    let cancelled = all.clone().filter(|s| s.finish == Finish::Cancelled);
    (cancelled.count(), all.count())
}

/// Resident memory in MiB, where the system says it.
fn resident() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0)
}

fn models() -> Vec<PathBuf> {
    if let Some(model) = std::env::var_os("QUINTIC_SOAK_MODEL") {
        return vec![model.into()];
    }
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/decoder_goldens");
    ["t5-v1_0", "umt5", "byt5"]
        .map(|name| goldens.join(name))
        .into()
}

#[test]
fn requests_come_and_go() {
    let minutes: Option<f64> = std::env::var("QUINTIC_SOAK_MINUTES")
        .ok()
        .map(|text| text.parse().expect("QUINTIC_SOAK_MINUTES is a number"));
    let models: Vec<Seq2Seq> = models()
        .iter()
        .flat_map(|folder| [ComputeType::F32, ComputeType::Bf16].map(|dtype| (folder, dtype)))
        .map(|(folder, dtype)| {
            let compute = Compute {
                dtype,
                ..Compute::default()
            };
            let checkpoint = Checkpoint::open(folder, &OpenOptions::default()).unwrap();
            Seq2Seq::from_checkpoint(&checkpoint, BackendKind::Cpu, &compute).unwrap()
        })
        .collect();
    let (rounds, cancelled, all) = (
        AtomicUsize::new(0),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    let failed = AtomicBool::new(false);
    let started = Instant::now();
    let soak = |until: &(dyn Fn(usize) -> bool + Sync), seed: u64| {
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (models, rounds, cancelled, all) = (&models, &rounds, &cancelled, &all);
                let failed = &failed;
                scope.spawn(move || {
                    // The others end too, and the scope tells of the panic.
                    struct Guard<'a>(&'a AtomicBool);
                    impl Drop for Guard<'_> {
                        fn drop(&mut self) {
                            if std::thread::panicking() {
                                self.0.store(true, Ordering::Relaxed);
                            }
                        }
                    }
                    let _guard = Guard(failed);
                    let mut random = Random(seed * 1000 + thread as u64);
                    let mut own = 0;
                    while !until(own) && !failed.load(Ordering::Relaxed) {
                        let model = &models[random.below(models.len())];
                        let (n_cancelled, n_all) = round(model, &mut random);
                        cancelled.fetch_add(n_cancelled, Ordering::Relaxed);
                        all.fetch_add(n_all, Ordering::Relaxed);
                        rounds.fetch_add(1, Ordering::Relaxed);
                        own += 1;
                    }
                });
            }
        });
    };
    let Some(minutes) = minutes else {
        soak(&|own| own >= ROUNDS, 1);
        let (cancelled, all) = (cancelled.into_inner(), all.into_inner());
        assert!(cancelled > 0 && all > cancelled, "{cancelled} of {all}");
        return;
    };
    // Buffers and the allocator's pieces grow to the largest round, ever more slowly; a leak goes on as it began.
    let length = Duration::from_secs_f64(minutes * 60.0);
    let mut sizes = Vec::new();
    for tenth in 1..=10 {
        soak(&|_| started.elapsed() > length * tenth / 10, tenth.into());
        sizes.extend(resident());
    }
    eprintln!(
        "{:.1} minutes, {} rounds, {} sequences of which {} were cancelled; MiB resident after each tenth {sizes:.1?}",
        started.elapsed().as_secs_f64() / 60.0,
        rounds.into_inner(),
        all.into_inner(),
        cancelled.into_inner(),
    );
    if let [_, _, _, _, half, .., end] = sizes[..] {
        // A round is some ten sequences, and a cache row of a tiny model is some KiB: of hundreds of rounds
        // in the second half, a leak of one row each would be more.
        assert!(
            end <= half * 1.05 + 16.0,
            "memory grew from {half:.1} MiB at half time to {end:.1}"
        );
    }
}
