//! Writes the seeds of every target to `corpus/TARGET`, and copies there what `testdata/fuzz`
//! keeps: `cargo run --bin seeds`, in `fuzz/`.

use std::path::Path;

fn main() -> std::io::Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    for target in &quintic_fuzz::TARGETS {
        let corpus = here.join("corpus").join(target.name);
        std::fs::create_dir_all(&corpus)?;
        let seeds = (target.seeds)();
        for (idx, seed) in seeds.iter().enumerate() {
            std::fs::write(corpus.join(format!("seed-{idx:03}")), seed)?;
        }
        let kept = here.join("../testdata/fuzz").join(target.name);
        for entry in std::fs::read_dir(kept).into_iter().flatten() {
            let path = entry?.path();
            if let Some(name) = path.file_name() {
                std::fs::copy(&path, corpus.join(name))?;
            }
        }
        println!("{}: {} seeds", target.name, seeds.len());
    }
    Ok(())
}
